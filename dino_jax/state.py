"""The train state, born sharded, and the networks it belongs to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from dino_jax import sharding
from dino_jax.models import PrototypeHead, VisionTransformer

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The three modules that student and teacher consist of."""

    backbone: VisionTransformer
    dino_head: PrototypeHead
    ibot_head: PrototypeHead

    def init(self, key: Array) -> Params:
        """Draws parameters: {"backbone", "dino_head", "ibot_head"}."""
        backbone_key, dino_key, ibot_key = jax.random.split(key, 3)
        side = self.backbone.patch_size
        image = jnp.zeros((1, side, side, self.backbone.in_channels))
        token = jnp.zeros((1, self.backbone.width))
        return {
            "backbone": self.backbone.init(backbone_key, {"global": image})["params"],
            "dino_head": self.dino_head.init(dino_key, token)["params"],
            "ibot_head": self.ibot_head.init(ibot_key, token)["params"],
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step reads and writes.

    Attributes:
      step: int32 scalar; steps taken since the start of the run, over all phases.
      student, teacher: parameters, float32; the teacher is the student's moving average.
      optimizer: AdamW moments of the student.
      gram_teacher: backbone parameters of the Gram teacher, or None in a phase without one.
      skipped: int32 scalar; updates left out so far because something was not finite.
      skipped_in_row: int32 scalar; how many of them are the latest steps.
    """

    step: Array
    student: Params
    teacher: Params
    optimizer: Any
    gram_teacher: Params | None
    skipped: Array
    skipped_in_row: Array


def abstract(networks: Networks, optimizer: optax.GradientTransformation, *, gram: bool) -> TrainState:
    """Returns the shapes and dtypes of a state, computing nothing."""
    return jax.eval_shape(lambda: _fresh(networks, optimizer, jax.random.key(0), gram=gram))


def init(networks: Networks, optimizer: optax.GradientTransformation, mesh: Mesh, *, seed: int) -> TrainState:
    """Draws a new state, every array born on the devices that hold it.

    The teacher starts as a copy of the student.
    """
    where = sharding.of_state(abstract(networks, optimizer, gram=False), mesh)
    create = jax.jit(lambda key: _fresh(networks, optimizer, key, gram=False), out_shardings=where)
    return create(jax.random.key(seed))


def _fresh(networks: Networks, optimizer: optax.GradientTransformation, key: Array, *, gram: bool) -> TrainState:
    student = networks.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=student,
        teacher=copy(student),
        optimizer=optimizer.init(student),
        gram_teacher=copy(student["backbone"]) if gram else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )


@jax.jit
def copy(params: Params) -> Params:
    """Copies parameters into arrays of their own.

    The next step donates its state: a snapshot that shared the teacher's buffers would be deleted with them.
    """
    return jax.tree.map(jnp.copy, params)


def with_gram_teacher(state: TrainState, params: Params | None) -> TrainState:
    """Returns the state with backbone parameters `params` (a copy of them), or none, as Gram teacher."""
    return dataclasses.replace(state, gram_teacher=None if params is None else copy(params))
