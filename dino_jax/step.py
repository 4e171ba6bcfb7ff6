"""The training step: targets, student, losses, update, EMA. Pure: (state, batch, hyper) -> (state, metrics, finite)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dino_jax import optim
from dino_jax.objective import Batch, Objective, loss_terms, targets
from dino_jax.state import Networks, Params, TrainState

# Keeps the random numbers of the networks apart from those of initialisation and augmentation (see `train`), which fold
# small numbers into the same seed.
NETWORK_STREAM = 0x6E657477
Clip = Callable[[Params, float], tuple[Params, dict[str, Array]]]
Step = Callable[[TrainState, Batch, Mapping[str, Array]], tuple[TrainState, dict[str, Array], Array]]


def make_train_step(
    networks: Networks,
    optimizer: optax.GradientTransformationExtraArgs,
    objective: Objective,
    *,
    clip: Clip = optim.clip_by_module,
    clip_norm: float,
    layer_decay: float,
    patch_embed_multiplier: float,
    seed: int,
) -> Step:
    """Builds the step of a phase, to be jitted with its first argument donated.

    The step takes the state, a batch of normalised float crops (see `data.pipeline`) and the scheduled scalars "lr",
    "backbone_lr", "last_layer_lr", "last_layer_rests", "weight_decay", "momentum", "teacher_temperature",
    "local_weight" and "gram_weight". An update with a non-finite loss, gradient or result is left out and counted; the
    step number goes on, as does the data.

    Args:
      clip: `optim.clip_by_module` or `optim.clip_by_tensor`.
      clip_norm: largest gradient norm of each of these.
      layer_decay, patch_embed_multiplier: learning-rate shares, see `optim.lr_multipliers`.
      seed: of stochastic depth and RoPE augmentation, which depend on it and the step number alone.

    Returns:
      step(state, batch, hyper) -> (state, metrics as float32 scalars, bool `(batch,)`: all features of the sample are
      finite).
    """
    key = jax.random.fold_in(jax.random.key(seed), NETWORK_STREAM)

    def train_step(state: TrainState, batch: Batch, hyper: Mapping[str, Array]):
        # 1. Targets from the EMA teacher and the Gram teacher.
        target, centers, teacher_stats = targets(networks, state, batch, objective, hyper["teacher_temperature"])
        # 2. Student, losses and gradients.
        rope_key, drop_path_key = jax.random.split(jax.random.fold_in(key, state.step))
        rngs = {"rope": rope_key, "drop_path": drop_path_key}
        stats = state.stats("student")
        differentiate = jax.value_and_grad(
            lambda student: loss_terms(networks, student, stats, batch, target, objective, hyper, rngs), has_aux=True
        )
        (loss, (terms, finite, stats)), grads = differentiate(state.student)
        batch_stats = None if stats is None else {"student": stats, "teacher": teacher_stats}
        # 3. Clip, then AdamW or SGD.
        grads, norms = clip(grads, clip_norm)
        updates, moments = optimizer.update(
            grads, state.optimizer, state.student, **update_options(state.student, hyper)
        )
        student = optax.apply_updates(state.student, updates)
        # 4. The teacher follows the new student.
        teacher = optim.ema(state.teacher, student, hyper["momentum"])
        # 5. Nothing non-finite enters the state.
        update_norms = optim.norms_by_module(updates)
        good = jnp.isfinite(jnp.stack([loss, *norms.values(), *update_norms.values()])).all()
        new = {"student": student, "teacher": teacher, "optimizer": moments}
        new |= {"centers": centers, "batch_stats": batch_stats}
        old = {name: getattr(state, name) for name in new}
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            **jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old),
            skipped=state.skipped + ~good,
            skipped_in_row=jnp.where(good, 0, state.skipped_in_row + 1),
        )
        metrics = named("loss", terms) | named("grad_norm", norms) | named("update_norm", update_norms)
        metrics |= {"train/skipped": state.skipped, "train/skipped_in_row": state.skipped_in_row}
        return state, metrics, finite

    def update_options(params: Params, hyper: Mapping[str, Array]) -> dict[str, Any]:
        """Returns what the optimizer needs to know of each parameter."""
        return {
            "rates": optim.rates(
                params,
                layer_decay=layer_decay,
                patch_embed_multiplier=patch_embed_multiplier,
                unused=unused_parameters(networks, objective),
                **{name: hyper[name] for name in ("lr", "backbone_lr", "last_layer_lr")},
            ),
            "weight_decay": hyper["weight_decay"],
            "last_layer_rests": hyper["last_layer_rests"],
            "decay_mask": optim.decay_mask(params, gains=networks.dino_head.gain != "frozen"),
            "last_layer": optim.is_last_layer(params),
        }

    return train_step


def unused_parameters(networks: Networks, objective: Objective) -> tuple[str, ...]:
    """Names what an objective does not train, and weight decay must leave as it is: beginnings of paths."""
    ibot = () if objective.ibot else ("ibot_head/", "backbone/mask_token")
    shared = networks.ibot_head is None and objective.ibot
    return ibot if objective.dino or shared else (*ibot, "dino_head/")


def named(group: str, values: Mapping[str, Array]) -> dict[str, Array]:
    """Puts the group before the names, as in "loss/total"."""
    return {f"{group}/{name}": value for name, value in values.items()}
