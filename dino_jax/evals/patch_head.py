"""Trains a batch norm and a linear layer on patch features: DINOv3, arXiv 2508.10104, section 6.1.1 and its appendix.

The same head serves segmentation (logits of the classes) and depth (weights of the depth bins).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from dino_jax.evals.segmentation import IGNORE, upsample

BATCH_NORM_MOMENTUM = 0.1  # share of the newest batch, as in PyTorch
BATCH_NORM_EPSILON = 1e-5
REPORT_EVERY = 25  # steps; a report waits for the device
WARMUP = 1500 / 40_000  # share of the steps, as in DINOv2's public configurations


class Head(NamedTuple):
    """Scale and offset `(dim,)`, kernel `(dim, outputs)`, bias `(outputs,)`; and the running moments `(dim,)`."""

    scale: Array
    offset: Array
    kernel: Array
    bias: Array
    mean: Array
    variance: Array


Fit = tuple[Head, optax.OptState]
"""A head that is being trained, and the state of its optimizer."""

Loss = Callable[[Array, Array], Array]
"""Maps outputs `(batch, rows, columns, outputs)` and targets `(batch, height, width)` to a number."""


def init_head(dim: int, outputs: int, *, seed: int = 0) -> Head:
    """Builds an untrained head: normal kernel of deviation 0.01, as in the references' decode heads."""
    kernel = 0.01 * jax.random.normal(jax.random.key(seed), (dim, outputs))
    zeros, ones = jnp.zeros(dim), jnp.ones(dim)
    return Head(ones, zeros, kernel, jnp.zeros(outputs), zeros, ones)


def apply_head(head: Head, patches: Array) -> Array:
    """Maps patches `(batch, rows, columns, dim)` to `(batch, rows, columns, outputs)` by the running moments."""
    normal = (jnp.asarray(patches, jnp.float32) - head.mean) * jax.lax.rsqrt(head.variance + BATCH_NORM_EPSILON)
    return (normal * head.scale + head.offset) @ head.kernel + head.bias


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW of the protocol: linear warm-up, then a linear way down to 0."""

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3

    def optimizer(self) -> optax.GradientTransformation:
        """Builds the optimizer."""
        warmup = max(1, round(WARMUP * self.steps))
        rates = optax.schedules.join_schedules(
            [
                optax.schedules.linear_schedule(self.learning_rate / warmup, self.learning_rate, warmup),
                optax.schedules.linear_schedule(self.learning_rate, 0.0, max(1, self.steps - warmup)),
            ],
            [warmup],
        )
        return optax.adamw(rates, weight_decay=self.weight_decay)


def fit_head(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    dim: int,
    outputs: int,
    loss: Loss,
    schedule: Schedule,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
    done: int = 0,
    restored: Callable[[Fit], Fit] = lambda new: new,
    keep: Callable[[int, Fit], Any] = lambda step, fit: None,
) -> tuple[Head, list[float]]:
    """Trains a head on batches of patch features and targets, one step each, until `schedule.steps` or their end.

    Args:
      batches: patches `(batch, rows, columns, dim)` and targets `(batch, height, width)`, of one shape each.
      dim: of the features.
      outputs: of the head.
      loss: of `cross_entropy` or `scale_invariant_log_loss`.
      schedule: steps, learning rate, weight decay.
      seed: of the head's start.
      report: told steps done and loss, every REPORT_EVERY steps and at the end.
      done: steps that are behind the state that `restored` returns; `batches` begins after them.
      restored: maps a new state to the one from which to continue.
      keep: told steps done and the state, as `report`; the loss is finite up to there.

    Returns:
      The head, and the loss of every step that was taken here.

    Raises:
      FloatingPointError: when the loss is not finite.
    """
    optimizer = schedule.optimizer()
    head = init_head(dim, outputs, seed=seed)
    head, state = restored((head, optimizer.init(_trained(head))))
    step = jax.jit(functools.partial(_step, optimizer=optimizer, loss=loss))
    losses = []
    for number, (patches, targets) in zip(range(done + 1, schedule.steps + 1), batches, strict=False):
        head, state, value = step(head, state, patches, targets)
        losses.append(value)
        if number % REPORT_EVERY == 0 or number == schedule.steps:
            if not np.isfinite(value):
                break
            if report is not None:
                report(number, float(value))
            keep(number, (head, state))
    values = np.asarray(jax.device_get(losses), np.float64)
    if not np.isfinite(values).all():
        first = done + 1 + int(np.isfinite(values).argmin())
        raise FloatingPointError(f"the loss of the head is not finite from step {first} on")
    return head, values.tolist()


def _step(
    head: Head,
    state: optax.OptState,
    patches: Array,
    targets: Array,
    *,
    optimizer: optax.GradientTransformation,
    loss: Loss,
) -> tuple[Head, optax.OptState, Array]:
    patches = jnp.asarray(patches, jnp.float32)
    mean, variance = patches.mean(axis=(0, 1, 2)), patches.var(axis=(0, 1, 2))

    def objective(trained: tuple[Array, Array, Array, Array]) -> Array:
        return loss(apply_head(Head(*trained, mean, variance), patches), targets)

    value, gradients = jax.value_and_grad(objective)(_trained(head))
    updates, state = optimizer.update(gradients, state, _trained(head))
    count = patches.size // patches.shape[-1]
    unbiased = variance * count / max(count - 1, 1)
    running = [old + BATCH_NORM_MOMENTUM * (new - old) for old, new in ((head.mean, mean), (head.variance, unbiased))]
    scale, offset, kernel, bias = optax.apply_updates(_trained(head), updates)
    return Head(scale, offset, kernel, bias, *running), state, value


def _trained(head: Head) -> tuple[Array, Array, Array, Array]:
    return head.scale, head.offset, head.kernel, head.bias


def cross_entropy(logits: Array, masks: Array) -> Array:
    """Averages the cross-entropy of logits, upsampled to the masks, over all pixels that are not ignored.

    Args:
      logits: `(batch, rows, columns, classes)`.
      masks: `(batch, height, width)` integers, 255 ignored.
    """
    logits = upsample(logits, masks.shape[1:])
    valid = masks != IGNORE
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, masks, 0).astype(jnp.int32))
    return jnp.sum(losses * valid) / jnp.maximum(valid.sum(), 1)


def depth_from_bins(outputs: Array, *, low: float, high: float) -> Array:
    """Turns bin scores `(..., bins)` into depth `(...)`: the mean of the bins' depths by their normalised weights.

    Weights are relu(score) + 0.1 over their sum, the references' "linear" normalisation; the bins are even.
    """
    weights = jax.nn.relu(outputs) + 0.1
    depths = jnp.linspace(low, high, outputs.shape[-1])
    return weights @ depths / weights.sum(axis=-1)


def scale_invariant_log_loss(outputs: Array, depths: Array, *, low: float, high: float) -> Array:
    """Computes the square root of var(g) + 0.15 * mean(g)^2, g = log d - log t over all known pixels.

    Eigen et al., arXiv 1406.2283, with the weights of AdaBins, arXiv 2011.14141.

    Args:
      outputs: scores of the bins `(batch, rows, columns, bins)`; their depth is upsampled to the truth.
      depths: `(batch, height, width)`, 0 where unknown.
    """
    found = upsample(depth_from_bins(outputs, low=low, high=high)[..., None], depths.shape[1:])[..., 0]
    valid = depths > 0
    count = jnp.maximum(valid.sum(), 1)
    difference = jnp.where(valid, jnp.log(found) - jnp.log(jnp.where(valid, depths, 1.0)), 0.0)
    mean = difference.sum() / count
    variance = jnp.sum(jnp.where(valid, difference - mean, 0.0) ** 2) / count
    # The root has no gradient at 0.
    return jnp.sqrt(variance + 0.15 * mean**2 + 1e-8)
