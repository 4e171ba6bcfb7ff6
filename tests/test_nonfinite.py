"""What is not finite never enters the state; it is counted, named, and stops the run when it does not end."""

import json

import jax
import numpy as np
import pytest

from dino_jax import build, sharding
from dino_jax import state as states
from dino_jax.checkpoint import Checkpoints, with_sharding
from tests.tiny_recipe import get_config


@pytest.fixture(scope="module")
def config():
    """Returns the tiny recipe, made smaller: one block, and a batch of two."""
    c = get_config()
    c.model.update({"depth": 1, "width": 16, "drop_path": 0.0})
    c.phases["pretrain"].batch_size = 2
    c.phases["pretrain"].masks.group_size = 2
    return c


@pytest.fixture(scope="module")
def setting(config):
    """Returns (jitted step, state, batch)."""
    networks, phase = build.networks(config, shards=1), config.phases["pretrain"]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = states.init(networks, build.optimizer(phase), mesh, seed=0)
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 2, 16), bool)
    masks[:, 0, :4] = True
    batch = {
        "global_crops": rng.normal(size=(2, 2, 32, 32, 3)).astype(np.float32),
        "local_crops": rng.normal(size=(2, 2, 16, 16, 3)).astype(np.float32),
        "masks": masks,
        "mask_indices": np.flatnonzero(masks)[None].astype(np.int32),
        "mask_weights": np.full((1, 8), 0.25, np.float32),
    }
    return jax.jit(build.train_step(networks, phase, seed=0)), state, batch


def hyper(**changes):
    small = ("lr", "backbone_lr", "last_layer_lr", "weight_decay", "teacher_temperature", "local_weight", "gram_weight")
    values = dict.fromkeys(small, 1e-3) | {"momentum": 0.9, "last_layer_rests": 0.0}
    return {name: np.float32(value) for name, value in (values | changes).items()}


def parts(state):
    return state.student, state.teacher, state.optimizer


def assert_untouched(before, after):
    jax.tree.map(np.testing.assert_array_equal, parts(after), parts(before))


def test_finite_update_changes_everything(setting):
    step, state, batch = setting
    after, metrics, finite = step(state, batch, hyper())
    assert finite.all()
    assert (int(after.step), int(after.skipped), int(metrics["train/skipped"])) == (1, 0, 0)
    for tree, before in zip(parts(after)[:2], parts(state)[:2], strict=True):
        kernel, old = (t["backbone"]["patch_embed"]["kernel"] for t in (tree, before))
        assert not np.array_equal(kernel, old)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_poisoned_sample_is_skipped_and_found(setting, value):
    step, state, batch = setting
    crops = batch["global_crops"].copy()
    crops[1, 1, 3, 3, 0] = value  # not under a mask, where only the teacher would see it
    after, metrics, finite = step(state, batch | {"global_crops": crops}, hyper())
    assert_untouched(state, after)
    assert finite.tolist() == [True, False]
    assert not np.isfinite(metrics["loss/dino_global"])
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (1, 1, 1)
    again, _, _ = step(after, batch | {"global_crops": crops}, hyper())
    assert (int(again.skipped), int(again.skipped_in_row)) == (2, 2)
    recovered, _, _ = step(again, batch, hyper())
    assert (int(recovered.step), int(recovered.skipped), int(recovered.skipped_in_row)) == (3, 2, 0)
    # The skipped steps have left no trace in the moments either: Adam counts one update.
    assert int(recovered.optimizer.count) == 1


def test_a_poisoned_local_crop_is_found_too(setting):
    step, state, batch = setting
    crops = batch["local_crops"].copy()
    crops[0, 1, 3, 3, 0] = np.nan
    after, _, finite = step(state, batch | {"local_crops": crops}, hyper())
    assert_untouched(state, after)
    assert finite.tolist() == [False, True]


@pytest.mark.parametrize("name", ["backbone_lr", "weight_decay"])
def test_update_that_would_overflow_is_skipped(setting, name):
    """Losses and gradients are fine, what they would make of the parameters is not."""
    step, state, batch = setting
    after, metrics, finite = step(state, batch, hyper(**{name: np.inf}))
    assert_untouched(state, after)
    assert finite.all()
    assert np.isfinite(metrics["grad_norm/backbone"])
    assert not np.isfinite(metrics["update_norm/backbone"])
    assert int(after.skipped) == 1


@pytest.mark.slow
def test_run_stops_with_its_last_good_checkpoint(program, tmp_path):
    """A mean beyond float32 makes every image infinite: the run saves after step 3 and stops after step 5."""
    workdir = tmp_path / "run"
    stopped = program.train(workdir, data__mean="(1e39,0.0,0.0)", nonfinite_limit=5, log__health_every=100)
    assert stopped.returncode == 1, stopped.stderr
    *lines, last = stopped.stderr.splitlines()
    assert last.startswith("stopped: 5 updates in a row were not finite (nonfinite_limit), the last at step 5")
    skipped = [line for line in lines if "update skipped" in line]
    assert len(skipped) == 5
    assert "step 2: update skipped (2 in a row): loss/dino_global" in skipped[1]
    assert "not finite, in every sample" in skipped[1]
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert records[2]["loss/total"] is None
    config, mesh = get_config(), sharding.make_mesh(devices=jax.devices()[:1])
    networks, optimizer = build.networks(config, shards=1), build.optimizer(config.phases["pretrain"])
    like = with_sharding(states.abstract(networks, optimizer, gram=False), mesh)
    with Checkpoints(workdir, keep_last=3, keep_every=0) as checkpoints:
        assert checkpoints.steps() == [3]
        restored = checkpoints.restore(lambda step: like, note=print)
    assert_untouched(states.init(networks, optimizer, mesh, seed=0), restored.state)
    assert int(restored.state.skipped_in_row) == 3
