"""Damaged checkpoints and snapshots are noticed, whatever happened to which file, and the newest good one is used."""

import contextlib
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from dino_jax import build, checkpoint, sharding
from dino_jax import state as states
from dino_jax.checkpoint import Checkpoints, with_sharding
from dino_jax.checksum import checksums, opened, sealed
from dino_jax.gram_teacher import check_snapshot, restore_snapshot, save_snapshot
from tests import linear_networks
from tests.linear_networks import normal
from tests.tiny_recipe import get_config


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def small_params(seed, width):
    backbone = {"patch_embed": {"kernel": normal(8, 8, 3, width, seed=seed)}, "cls_token": normal(width, seed=seed)}
    return {"backbone": backbone, "dino_head": {"prototypes": {"kernel": normal(width, 64, seed=seed)}}}


def write(workdir, state, steps):
    with Checkpoints(workdir, keep_last=2, keep_every=0) as checkpoints:
        for step in steps:
            checkpoints.save(step, dataclasses.replace(state, step=jnp.int32(step)), {"batches_taken": 10 * step})


@pytest.fixture(scope="module")
def saved(mesh, tmp_path_factory):
    """Returns (a state of few arrays, the shapes to restore it with, a workdir that holds it at steps 1 and 2)."""
    # One array takes most of the space, so that it is what a byte in the middle of the largest file belongs to.
    networks = {"student": small_params(0, width=64), "teacher": small_params(1, width=8)}
    state = dataclasses.replace(linear_networks.state(), **networks, gram_teacher=None)
    state = jax.device_put(state, sharding.of_state(state, mesh))
    workdir = tmp_path_factory.mktemp("checkpoints") / "run"
    write(workdir, state, steps=(0, 1, 2))
    return state, with_sharding(jax.eval_shape(lambda: state), mesh), workdir


def restore(workdir, like):
    notes = []
    with Checkpoints(workdir, keep_last=2, keep_every=0) as checkpoints:
        return checkpoints.restore(lambda step: like, note=notes.append), notes


def test_a_save_asks_nobody_whether_to_stop(saved, tmp_path, monkeypatch):
    """JAX would take the step of the save for the one that the process has reached, and others stop elsewhere."""
    state, _, _ = saved
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step)))
    with Checkpoints(tmp_path / "run", keep_last=2, keep_every=0) as checkpoints:
        checkpoints.save(1, dataclasses.replace(state, step=jnp.int32(1)), {"batches_taken": 10})
        assert checkpoints.steps() == [1]
    assert asked == []


def test_a_save_that_fails_here_does_not_wait_for_the_others(monkeypatch):
    waited = []
    monkeypatch.setattr(checkpoint.multihost, "get_barrier_sync_fn", lambda: lambda key, timeout_ms: waited.append(key))
    checkpoint.barrier(key="all is well", timeout_ms=1)
    with contextlib.suppress(OSError):
        try:
            raise OSError
        finally:
            checkpoint.barrier(key="a full disk", timeout_ms=1)
    assert waited == ["all is well"]


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def largest(folder):
    """Returns the file with most of the arrays; how they are spread over files is a matter of timing."""
    return max(folder.rglob("d/*"), key=lambda file: file.stat().st_size)


def digit(folder):
    """Changes where the data had got to, leaving valid JSON."""
    file = folder / "data" / "metadata"
    file.write_text(file.read_text().replace("20", "30"))


def test_restores_what_was_saved(mesh, tmp_path):
    """All parts of a state, as a run has it."""
    networks, optimizer = build.networks(get_config(), shards=1), build.optimizer(get_config().phases["pretrain"])
    state = states.init(networks, optimizer, mesh, seed=0, centered=("dino", "ibot"))
    state = dataclasses.replace(state, centers=jax.tree.map(lambda center: center + 1.5, state.centers))
    like = with_sharding(states.abstract(networks, optimizer, gram=False, centered=("dino", "ibot")), mesh)
    write(tmp_path, state, steps=(2,))
    restored, notes = restore(tmp_path, like)
    assert not notes
    assert (restored.step, int(restored.state.step), restored.data) == (2, 2, {"batches_taken": 20})
    jax.tree.map(np.testing.assert_array_equal, restored.state, dataclasses.replace(state, step=jnp.int32(2)))


def test_restores_the_newest(saved):
    state, like, workdir = saved
    restored, notes = restore(workdir, like)
    assert not notes
    assert (restored.step, int(restored.state.step), restored.data) == (2, 2, {"batches_taken": 20})
    jax.tree.map(np.testing.assert_array_equal, restored.state, dataclasses.replace(state, step=jnp.int32(2)))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]  # the last two


def test_which_checkpoints_stay(saved, tmp_path):
    state, _, _ = saved
    with Checkpoints(tmp_path / "run", keep_last=1, keep_every=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, dataclasses.replace(state, step=jnp.int32(step)), {})
    with Checkpoints(tmp_path / "run", keep_last=1, keep_every=2) as checkpoints:
        assert checkpoints.steps() == [5, 4, 2]


def test_a_checkpoint_of_another_step_is_damaged(saved, tmp_path):
    _, like, workdir = saved
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2").rename(tmp_path / "run" / "checkpoints" / "3")
    restored, notes = restore(tmp_path / "run", like)
    assert restored.step == 1
    assert "it is not what was saved at this step" in notes[0]


def test_nothing_to_restore(saved, tmp_path):
    assert restore(tmp_path, saved[1]) == (None, [])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: truncate(largest(folder)), id="array truncated"),
        pytest.param(lambda folder: largest(folder).unlink(), id="array deleted"),
        pytest.param(lambda folder: flip(largest(folder)), id="byte flipped in an array"),
        pytest.param(lambda folder: truncate(folder / "state" / "manifest.ocdbt"), id="manifest truncated"),
        pytest.param(lambda folder: flip(folder / "state" / "manifest.ocdbt"), id="byte flipped in the manifest"),
        pytest.param(lambda folder: (folder / "state" / "_METADATA").unlink(), id="metadata deleted"),
        pytest.param(lambda folder: flip(folder / "state" / "_METADATA"), id="byte flipped in the metadata"),
        pytest.param(lambda folder: shutil.rmtree(folder / "state"), id="state deleted"),
        pytest.param(lambda folder: truncate(folder / "data" / "metadata"), id="data position truncated"),
        pytest.param(digit, id="data position changed"),
    ],
)
def test_falls_back_to_the_newest_good_checkpoint_and_says_so(saved, tmp_path, damage, capfd):
    _, like, workdir = saved
    shutil.copytree(workdir, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "2")
    restored, notes = restore(tmp_path / "run", like)
    assert (restored.step, restored.data) == (1, {"batches_taken": 10})
    (note,) = notes
    assert note.startswith("checkpoint 2 is damaged (")
    assert note.endswith(f"moved to {tmp_path}/run/damaged_checkpoints/2")
    assert (tmp_path / "run" / "damaged_checkpoints" / "2").is_dir()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_good_checkpoint_is_not_set_aside_for_what_the_machine_does(saved, tmp_path, monkeypatch):
    _, like, workdir = saved
    shutil.copytree(workdir, tmp_path / "run")

    def restore_nothing(self, folder, **_):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 26843545600 bytes")

    with (
        monkeypatch.context() as patched,
        pytest.raises(OSError, match=r"checkpoint 2 in .* now \(RESOURCE_EXH.*\): fix that"),
    ):
        patched.setattr(ocp.StandardCheckpointHandler, "restore", restore_nothing)
        restore(tmp_path / "run", like)
    restored, notes = restore(tmp_path / "run", like)
    assert (restored.step, notes) == (2, [])


def test_none_can_be_read(saved, tmp_path):
    _, like, workdir = saved
    shutil.copytree(workdir, tmp_path / "run")
    for step in "12":
        flip(largest(tmp_path / "run" / "checkpoints" / step))
    with pytest.raises(ValueError, match=r"none of the 2 checkpoints in .* can be read \(2: .{10,}\): repair them"):
        restore(tmp_path / "run", like)
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()  # moved nowhere: the fault may be elsewhere


def test_snapshot(saved, mesh, tmp_path):
    state, like, _ = saved
    params, folder = state.teacher["backbone"], tmp_path / "gram_teacher" / "7"
    save_snapshot(folder, params)
    restored = restore_snapshot(folder, like.teacher["backbone"])
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    with pytest.raises(ValueError, match=r"no Gram snapshot at .*/8; .*/gram_teacher holds 7: set gram.teacher"):
        check_snapshot(tmp_path / "gram_teacher" / "8")
    flip(largest(folder))
    with pytest.raises(ValueError, match=r"cannot be read, it is damaged .*checksum"):
        restore_snapshot(folder, like.teacher["backbone"])
    with pytest.raises(ValueError, match="cannot be read, it is damaged or of another network"):
        restore_snapshot(folder, like.teacher["dino_head"])


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 5)])
def test_checksum_sees_any_change(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, shape).astype(dtype)
    before = int(checksums(x))
    assert int(checksums(x.copy())) == before
    for index in np.ndindex(shape):
        changed = x.copy()
        changed[index] += 1
        assert int(checksums(changed)) != before
    if x.size > 1 and x.flat[0] != x.flat[1]:
        swapped = x.copy()
        swapped.flat[0], swapped.flat[1] = x.flat[1], x.flat[0]
        assert int(checksums(swapped)) != before
    if np.issubdtype(dtype, np.floating) and x.size > 1:  # two flipped signs must not cancel
        signs = x.copy() + 1
        before = int(checksums(signs))
        signs.flat[:2] *= -1
        assert int(checksums(signs)) != before


def test_seal_names_the_array_that_differs():
    seal = sealed({"backbone": {"kernel": jnp.ones((2, 3))}, "bias": jnp.zeros(3)})
    assert opened(seal) is seal["content"]
    seal["content"]["backbone"]["kernel"] = jnp.full((2, 3), 2.0)
    with pytest.raises(ValueError, match="checksum of backbone/kernel is wrong"):
        opened(seal)
