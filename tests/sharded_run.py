"""Trains the tiny recipe on meshes of several shapes: `python -m tests.sharded_run FOLDER IMAGES 1x1 centered-2x4 ...`.

"centered-" is the fast set-up of DINOv2: centered targets, and one weight-normalised head for both losses; "convnext-"
a ConvNeXt, with DINO and KoLeo alone, and crops of two sizes.

Leaves FOLDER/<shape>/metrics.jsonl, and prints as JSON how many bytes of the state the first device holds.
"""

import json
import logging
import sys
from pathlib import Path

import jax

from dino_jax import build, config, sharding
from dino_jax.checkpoint import Checkpoints
from dino_jax.stop import StopRequest
from dino_jax.train import Trainer
from dino_jax.workdir import Workdir
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
            held.append(sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)))
            return state

    with Workdir(folder) as workdir, StopRequest() as stop:
        trainer = Holding(c, workdir, mesh, networks, source, (source, None, source), stop)
        trainer.report.finish = lambda state, seconds: {}
        trainer.gram.snapshot = lambda step, state: None
        trainer.run()
    return held[0]


if __name__ == "__main__":
    Checkpoints.save = lambda *_: None
    logging.getLogger("absl").setLevel(logging.ERROR)
    held = {}
    for shape in sys.argv[3:]:
        kind, _, sides = shape.rpartition("-")
        rows, columns = (int(side) for side in sides.split("x"))
        held[shape] = train(Path(sys.argv[1]) / shape, Path(sys.argv[2]), kind, rows, columns)
    print(json.dumps(held))
