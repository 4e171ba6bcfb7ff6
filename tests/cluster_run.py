"""One of several processes that do what only clusters do: `python -m tests.cluster_run FOLDER`."""

import dataclasses
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dino_jax import agreement, build, cluster, command, initial, sharding
from dino_jax import state as states
from dino_jax.checkpoint import Checkpoints, with_sharding
from dino_jax.data.fit import fit
from dino_jax.data.sources import open_path
from dino_jax.data.subset import part_of
from dino_jax.evals.knn import raw_pixels
from dino_jax.gram_teacher import GramTeachers, restore_snapshot
from dino_jax.scores import Scores
from tests.tiny_recipe import get_config


def differ(folder: Path) -> None:
    """Compares settings of which one differs."""
    agreement.check({"seed": 0, "data": ("a.png", "b.png")})
    agreement.check({"seed": jax.process_index(), "data": ("a.png", "b.png")})


def share(folder: Path) -> None:
    """Looks for the files of the first process, in the same folder and then in another one."""
    agreement.PATIENCE = 2.0
    agreement.check_shared(folder / ".shared")
    own = folder / str(jax.process_index())
    own.mkdir()
    agreement.check_shared(own / ".shared")


def load(folder: Path) -> None:
    """Begins from weights that are others in each process."""
    c = get_config()
    mesh, networks = sharding.make_mesh(), build.networks(c, shards=2)
    shapes = jax.eval_shape(networks.backbone_weights, jax.random.key(0))
    params = jax.tree.map(lambda s: np.full(s.shape, jax.process_index(), s.dtype), shapes)
    statistics = tuple(c.data.mean), tuple(c.data.std)
    model = SimpleNamespace(name="tiny", backbone=networks.backbone, mean=statistics[0], std=statistics[1])
    initial.loaded(str(folder), networks, mesh, load=lambda path: (model, params), statistics=statistics)


def snapshot(folder: Path) -> None:
    """Saves a Gram snapshot of a teacher that is split over the processes, and restores it."""
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    networks = small_networks()
    state = states.init(networks, build.optimizer(get_config().phases["pretrain"]), mesh, seed=0)
    teachers = GramTeachers(folder, mesh, print, None)
    teachers.snapshot(3, state)
    shapes = jax.eval_shape(networks.backbone_weights, jax.random.key(0))
    restored = restore_snapshot(teachers.snapshot_folder(3), with_sharding(shapes, mesh))
    same = jax.jit(lambda a, b: jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda x, y: (x == y).all(), a, b)))
    kept, before = (tree["blocks"]["mlp"]["fc1"]["kernel"] for tree in (restored, states.teacher_weights(state)))
    assert kept.sharding == before.sharding and not kept.is_fully_replicated
    assert same(restored, states.teacher_weights(state))
    print("snapshot 3 restored, as it was")


def full(folder: Path) -> None:
    """Saves twice; the second process finds its disk full then, while the first one does not."""
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    state = states.init(small_networks(), build.optimizer(get_config().phases["pretrain"]), mesh, seed=0)
    with Checkpoints(folder, keep_last=3, keep_every=0) as checkpoints:
        for step in (1, 2):  # the second waits for the first
            checkpoints.save(step, state, {})
        if jax.process_index() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        checkpoints.save(3, state, {})
        checkpoints.save(4, state, {})


def restore(folder: Path) -> None:
    """Restores a state that is split over the processes; of the newest one, a part that one process reads is lost."""
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    networks, optimizer = small_networks(), build.optimizer(get_config().phases["pretrain"])
    state = states.init(networks, optimizer, mesh, seed=0)
    like = with_sharding(states.abstract(networks, optimizer, gram=False), mesh)
    with Checkpoints(folder, keep_last=3, keep_every=0) as checkpoints:
        for step in (1, 2):
            counted = jax.jit(lambda step=step: jnp.int32(step), out_shardings=state.step.sharding)()
            checkpoints.save(step, dataclasses.replace(state, step=counted), {"batches_taken": step})
    multihost_utils.sync_global_devices("saved")
    if jax.process_index() == 0:
        shutil.rmtree(folder / "checkpoints" / "2" / "state" / "ocdbt.process_1" / "d")
    multihost_utils.sync_global_devices("damaged")
    with Checkpoints(folder, keep_last=3, keep_every=0) as checkpoints:
        restored = checkpoints.restore(lambda step: like, note=print)
    print(f"restored step {restored.step}, {int(restored.state.step)}")


def pixels(folder: Path) -> None:
    """Shrinks images, of which each process decodes its part; the last of an odd number is one's alone."""
    source = part_of(open_path("packaged"), 7)
    scores = Scores.__new__(Scores)
    scores.config, scores._interrupted = get_config(), lambda: False
    features, labels = scores._pixels(source)
    samples = [source[index] for index in range(7)]
    np.testing.assert_array_equal(
        features, raw_pixels([fit(s["image"], size=scores.config.eval.size) for s in samples])
    )
    assert labels.tolist() == [s["label"] for s in samples]
    print("the pixels of 7 images, in order")


def small_networks() -> states.Networks:
    """Returns the networks of the tiny recipe with one block."""
    c = get_config()
    c.model.depth = 1
    return build.networks(c, shards=1)


def everything(folder: Path) -> None:
    """Does all of this, one thing after the other; an error but the last one is printed, in all processes alike."""
    for work in (differ, share, load, pixels, restore, snapshot, full):
        own = folder / work.__name__
        try:
            own.mkdir(exist_ok=True)
            work(own)
        except ValueError as error:
            print(f"{work.__name__}: {error}")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # the first process is killed in the end
    cluster.join()
    sys.exit(command.run(lambda: everything(Path(sys.argv[1]))))
