"""The train state, born sharded, and the networks it belongs to."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from dino_jax import sharding
from dino_jax.models import Backbone, PrototypeHead, init_variables
from dino_jax.models.stages import STATS

Params = dict[str, Any]
Centers = dict[str, Array] | None


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules that student and teacher consist of.

    Attributes:
      ibot_head: None where the DINO head scores patches as well, or nothing does.
    """

    backbone: Backbone
    dino_head: PrototypeHead
    ibot_head: PrototypeHead | None = None

    def features(
        self,
        params: Params,
        stats: Params | None,
        crops: Mapping[str, Array],
        masks: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> tuple[dict[str, dict[str, Array]], Params | None]:
        """Runs the backbone.

        Args:
          params: {"backbone", ...}.
          stats: running statistics of a backbone with BatchNorm, which then normalises by the crops, the teacher's
            too, as in DINO; None for any other.
          crops, masks, train, rngs: see `models.VisionTransformer`.

        Returns:
          (tokens by group of crops, running statistics after these crops).
        """
        if stats is None:
            return self.backbone.apply({"params": params["backbone"]}, crops, masks, train=train, rngs=rngs), None
        variables = {"params": params["backbone"], STATS: stats}
        out, changed = self.backbone.apply(variables, crops, masks, train=True, mutable=[STATS])
        return out, changed[STATS]

    def dino_logits(self, params: Params, cls: Array) -> Array:
        """Scores CLS tokens `(..., dim)`: `(..., prototypes)`, float32."""
        return self.dino_head.apply({"params": params["dino_head"]}, cls)

    def ibot_logits(self, params: Params, patches: Array) -> Array:
        """Scores patches `(..., dim)` by the iBOT head, or by the DINO head if that is shared: `(..., prototypes)`."""
        if self.ibot_head is None:
            return self.dino_logits(params, patches)
        return self.ibot_head.apply({"params": params["ibot_head"]}, patches)

    def init(self, key: Array) -> Params:
        """Draws parameters: {"backbone", "dino_head", and "ibot_head" if there is one}."""
        backbone_key, dino_key, ibot_key = jax.random.split(key, 3)
        token = jnp.zeros((1, self.backbone.width))
        params = {
            "backbone": init_variables(self.backbone, backbone_key)["params"],
            "dino_head": self.dino_head.init(dino_key, token)["params"],
        }
        if self.ibot_head is not None:
            params["ibot_head"] = self.ibot_head.init(ibot_key, token)["params"]
        return params

    def backbone_weights(self, key: Array) -> Params:
        """Draws what a backbone is evaluated with, in the form of `teacher_weights`."""
        return _with_stats(self.init(key)["backbone"], self.batch_stats())

    def batch_stats(self) -> Params | None:
        """Returns the running statistics with which BatchNorm begins, None for a backbone without it."""
        return init_variables(self.backbone, jax.random.key(0)).get(STATS)

    def centers(self, names: Sequence[str]) -> Centers:
        """Returns the zeros with which the running means of teacher scores begin, None without any.

        Args:
          names: of "dino" and "ibot", those whose targets are centered.
        """
        heads = {"dino": self.dino_head, "ibot": self.ibot_head or self.dino_head}
        return {name: jnp.zeros(heads[name].prototypes) for name in names} or None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step reads and writes.

    Attributes:
      step: int32 scalar; steps taken since the start of the run, over all phases.
      student, teacher: parameters, float32; the teacher is the student's moving average.
      optimizer: moments of the student's gradients.
      centers: running means of the teacher's scores by head, float32 `(prototypes,)`; None unless targets are centered.
      batch_stats: BatchNorm's running statistics, {"student", "teacher"}; None without BatchNorm.
      gram_teacher: backbone parameters of the Gram teacher, or None in a phase without one.
      skipped: int32 scalar; updates left out so far because something was not finite.
      skipped_in_row: int32 scalar; how many of them are the latest steps.
    """

    step: Array
    student: Params
    teacher: Params
    optimizer: Any
    centers: Centers
    batch_stats: Params | None
    gram_teacher: Params | None
    skipped: Array
    skipped_in_row: Array

    def stats(self, network: str) -> Params | None:
        """Returns BatchNorm's running statistics of the "student" or the "teacher"; None without BatchNorm."""
        return None if self.batch_stats is None else self.batch_stats[network]


def abstract(
    networks: Networks, optimizer: optax.GradientTransformation, *, gram: bool, centered: Sequence[str] = ()
) -> TrainState:
    """Returns the shapes and dtypes of a state, computing nothing; arguments as for `init`."""
    return jax.eval_shape(lambda: _fresh(networks, optimizer, jax.random.key(0), gram=gram, centered=centered))


def init(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    centered: Sequence[str] = (),
) -> TrainState:
    """Draws a new state, every array born on the devices that hold it.

    The teacher starts as a copy of the student.

    Args:
      centered: of "dino" and "ibot", those whose targets are centered.
    """
    where = sharding.of_state(abstract(networks, optimizer, gram=False, centered=centered), mesh)
    create = jax.jit(lambda key: _fresh(networks, optimizer, key, gram=False, centered=centered), out_shardings=where)
    return create(jax.random.key(seed))


def _fresh(
    networks: Networks, optimizer: optax.GradientTransformation, key: Array, *, gram: bool, centered: Sequence[str]
) -> TrainState:
    student, stats = networks.init(key), networks.batch_stats()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        student=student,
        teacher=copy(student),
        optimizer=optimizer.init(student),
        centers=networks.centers(centered),
        batch_stats=None if stats is None else {"student": stats, "teacher": copy(stats)},
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


def teacher_weights(state: TrainState) -> Params:
    """Returns what the teacher's backbone is evaluated with: its parameters, and BatchNorm's running statistics, if
    any, under "batch_stats"."""
    return _with_stats(state.teacher["backbone"], state.stats("teacher"))


def student_weights(state: TrainState) -> Params:
    """Returns the same of the student's backbone."""
    return _with_stats(state.student["backbone"], state.stats("student"))


def _with_stats(params: Params, stats: Params | None) -> Params:
    return params if stats is None else params | {STATS: stats}


def with_backbone(state: TrainState, params: Params) -> TrainState:
    """Returns the state with copies of a backbone's weights, in the form of `teacher_weights`, in both networks."""
    params = dict(params)
    stats = params.pop(STATS, None)
    student, teacher = (network | {"backbone": copy(params)} for network in (state.student, state.teacher))
    both = None if stats is None else {"student": copy(stats), "teacher": copy(stats)}
    return dataclasses.replace(state, student=student, teacher=teacher, batch_stats=both)


def with_gram_teacher(state: TrainState, params: Params | None) -> TrainState:
    """Returns the state with backbone parameters `params` (a copy of them), or none, as Gram teacher."""
    return dataclasses.replace(state, gram_teacher=None if params is None else copy(params))
