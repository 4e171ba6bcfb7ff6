"""Trains the tiny recipe on meshes of several shapes: `python -m tests.sharded_run FOLDER IMAGES 1x1 centered-2x4 ...`.

"centered-" is the fast set-up of DINOv2: centered targets, and one weight-normalised head for both losses; "convnext-"
a ConvNeXt, with DINO and KoLeo alone, and crops of two sizes.

Leaves FOLDER/<shape>/metrics.jsonl, and prints as JSON how many bytes of the state the first device holds; under
"moved", what a checkpoint of a 2x4 mesh is on others, see `moved`.
"""

import dataclasses
import json
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dino_jax import build, config, sharding
from dino_jax.checkpoint import Checkpoints, with_sharding
from dino_jax.stop import StopRequest
from dino_jax.train import Trainer
from dino_jax.workdir import Workdir
from tests import linear_networks
from tests.linear_networks import normal
from tests.tiny_recipe import get_config

SHARDS = 8  # slices of the batch in which stochastic depth draws its subset, on a single device too


def recipe(images: Path):
    """Returns four steps with all terms: a Gram teacher from the start, stochastic depth, health."""
    c = get_config()
    c.data.path = str(images / "train")
    c.log.health_every = 4
    gram = c.phases["gram"]
    gram.steps = 4
    gram.batch_size = 16
    gram.masks.group_size = 2
    gram.gram.teacher = "ema"
    c.phase_order = ("gram",)
    return c


def without_gram(phase) -> None:
    """Takes the Gram teacher out of a phase."""
    phase.gram.update({"teacher": "none", "refresh_every": 0, "max_refreshes": 0})
    phase.schedules.gram_weight.update({"start": 0.0, "peak": 0.0, "end": 0.0})


def centered(c) -> None:
    """Changes the recipe to centering and a shared head, without a Gram teacher."""
    without_gram(c.phases["gram"])
    c.log.health_every = 100
    c.phases["gram"].targets = "centering"
    c.dino_head.gain = "trained"
    c.share_head = True


def convnext(c) -> None:
    """Changes the recipe to a ConvNeXt and what it can do, on crops of two sizes, each of which is compiled."""
    without_gram(c.phases["gram"])
    c.phases["gram"].crops.mixture = ((0.5, 48, 16, 64),)
    c.phases["gram"].loss.ibot = 0.0
    c.log.health_every = 100
    c.model = config.model("dinov3_convnext_tiny", depths=(1,), widths=(8,), layer_scale=0.1)


KINDS = {"": lambda c: None, "centered": centered, "convnext": convnext}


def train(folder: Path, images: Path, kind: str, data: int, fsdp: int) -> int:
    """Trains on a mesh and returns the bytes of the state on its first device; saves and evaluates nothing."""
    c = recipe(images)
    KINDS[kind](c)
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
    networks = build.networks(c, shards=SHARDS)
    source, _ = build.sources(c)
    held = []

    class Holding(Trainer):
        def initialise(self):
            state = super().initialise()
            held.append(first_bytes(state))
            return state

    with Workdir(folder) as workdir, StopRequest() as stop:
        trainer = Holding(c, workdir, mesh, networks, source, (source, None, source), stop)
        trainer.report.finish = lambda state, seconds: {}
        trainer.gram.snapshot = lambda step, state: None
        trainer.run()
    return held[0]


def small_state():
    """Returns a state of few arrays; 4 devices split the rows of two kernels, 8 their columns."""
    kernels = {"blocks": {"mlp": {"kernel": normal(2, 12, 16)}}, "patch_embed": {"kernel": normal(8, 8, 3, 16)}}
    head = {"prototypes": {"kernel": normal(12, 64)}}
    student = {"backbone": kernels | {"cls_token": normal(16)}, "dino_head": head}
    parts = {"step": jnp.int32(5), "student": student, "teacher": {}, "gram_teacher": None}
    return dataclasses.replace(linear_networks.state(), **parts)


def moved(folder: Path) -> dict[str, dict]:
    """Saves a state on a 2x4 mesh and restores it on others, where arrays are whole or split along another dimension.

    Returns:
      By mesh, the names of arrays that are not what they were or not where they belong, and how many bytes of the
      state its first device holds.
    """
    state, found = small_state(), {}
    with Checkpoints(folder, keep_last=1, keep_every=0) as checkpoints:
        split = sharding.of_state(state, sharding.make_mesh(data=2, fsdp=4))
        checkpoints.save(5, jax.device_put(state, split), {"batches_taken": 5})
    with Checkpoints(folder, keep_last=1, keep_every=0) as checkpoints:
        for data, fsdp in ((1, 1), (1, 8)):
            mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
            like = with_sharding(jax.eval_shape(lambda: state), mesh)
            restored = checkpoints.restore(lambda step, like=like: like, note=print)
            leaves = [jax.tree.leaves(tree) for tree in (state, like, restored.state)]
            wrong = [
                name
                for name, x, wanted, array in zip(sharding.shapes_by_path(state), *leaves, strict=True)
                if array.sharding != wanted.sharding or not np.array_equal(array, x)
            ]
            found[f"{data}x{fsdp}"] = {"wrong": wrong, "bytes": first_bytes(restored.state)}
    return found


def first_bytes(state) -> int:
    """Returns how many bytes of a state its first device holds."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)
    found = {"moved": moved(Path(sys.argv[1]) / "moved")}
    Checkpoints.save = lambda *_: None
    for shape in sys.argv[3:]:
        kind, _, sides = shape.rpartition("-")
        rows, columns = (int(side) for side in sides.split("x"))
        found[shape] = train(Path(sys.argv[1]) / shape, Path(sys.argv[2]), kind, rows, columns)
    print(json.dumps(found))
