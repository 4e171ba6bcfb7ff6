"""Linear probes on frozen features, all learning rates and feature choices at once: DINOv2, arXiv 2304.07193, App. B.3.

A probe is {choice: {"kernel": (rates, dim, classes), "bias": (rates, classes)}}.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Of a batch of 256; scaled with the batch. The 13 of DINOv2's grid.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
MOMENTUM = 0.9
INIT_STD = 0.01  # DINO's and DINOv2's linear heads
BLOCKS = 4  # CLS tokens that the widest choice joins

Probe = dict[str, dict[str, Array]]


class Probes(NamedTuple):
    """Parameters and momentum of all probes, trees of one structure."""

    params: Probe
    momentum: Probe


def choices(cls: Array | np.ndarray, mean_patch: Array | np.ndarray) -> dict[str, Array]:
    """Joins tokens to the features that are tried.

    Args:
      cls: `(images, blocks, dim)` of the last blocks, or `(images, dim)` of the last one.
      mean_patch: `(images, dim)`, the mean of the last block's patches.

    Returns:
      float32 `(images, ...)`: "cls_1" and, with several blocks, "cls_<blocks>"; each also with "+patch".
    """
    cls = jnp.asarray(cls, jnp.float32)
    cls = cls[:, None] if cls.ndim == 2 else cls
    patch = jnp.asarray(mean_patch, jnp.float32)
    found: dict[str, Array] = {}
    for blocks in sorted({1, cls.shape[1]}):
        joined = cls[:, -blocks:].reshape(len(cls), -1)
        found |= {f"cls_{blocks}": joined, f"cls_{blocks}+patch": jnp.concatenate([joined, patch], axis=1)}
    return found


def init(key: Array, dims: Mapping[str, int], *, rates: int, classes: int) -> Probes:
    """Draws the probes; those of one choice start alike.

    Args:
      dims: of each choice.
      rates: how many learning rates.

    Raises:
      ValueError: for fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"a linear probe needs two classes or more, got {classes}")
    params = {}
    for name, each in zip(sorted(dims), jax.random.split(key, len(dims)), strict=True):
        kernel = INIT_STD * jax.random.normal(each, (dims[name], classes))
        params[name] = {
            "kernel": jnp.broadcast_to(kernel, (rates, *kernel.shape)),
            "bias": jnp.zeros((rates, classes)),
        }
    return Probes(params, jax.tree.map(jnp.zeros_like, params))


@functools.partial(jax.jit, donate_argnums=0)
def train_step(
    probes: Probes, features: Mapping[str, Array], labels: Array, weights: Array, rates: Array
) -> tuple[Probes, dict[str, Array]]:
    """Takes one step of SGD with momentum 0.9 and no weight decay.

    Args:
      features: `(batch, dim)` of each choice.
      labels: int `(batch,)`.
      weights: `(batch,)`, 0 leaves a sample out.
      rates: learning rates `(rates,)` of this step.

    Returns:
      The new probes and the cross-entropy `(rates,)` of each choice.
    """

    def losses(probe: dict[str, Array], x: Array) -> Array:
        """Returns the loss `(rates,)`."""
        logits = jax.vmap(lambda kernel, bias: x @ kernel + bias)(probe["kernel"], probe["bias"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[None, :, None], axis=-1)[..., 0]
        return -(picked * weights).sum(axis=-1) / jnp.maximum(weights.sum(), 1)

    def total(params: Probe) -> tuple[Array, dict[str, Array]]:
        # Each probe meets only its own term, so the gradient of the sum is the gradient of each.
        found = {name: losses(params[name], features[name]) for name in params}
        return sum(jnp.sum(loss) for loss in found.values()), found  # type: ignore[return-value]

    gradients, found = jax.grad(total, has_aux=True)(probes.params)
    momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, probes.momentum, gradients)

    def update(param: Array, step: Array) -> Array:
        return param - rates.reshape(-1, *[1] * (param.ndim - 1)) * step

    return Probes(jax.tree.map(update, probes.params, momentum), momentum), found


def scheduled(rates: tuple[float, ...], *, step: int, steps: int, batch_size: int) -> np.ndarray:
    """Returns the learning rates `(rates,)` of a step: scaled by batch / 256, then along a cosine to 0."""
    share = 0.5 * (1 + np.cos(np.pi * step / steps))
    return np.asarray(rates, np.float32) * np.float32(share * batch_size / 256)


def predict(params: Probe, blocks: Iterable[Mapping[str, Array]]) -> dict[str, np.ndarray]:
    """Returns predicted labels int32 `(rates, samples)` of each choice, -1 where a probe has diverged.

    Args:
      blocks: features `(block, dim)` of each choice; one block at a time is on the device.
    """
    parts = [jax.device_get(_predict(params, features)) for features in blocks]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in params}


@jax.jit
def _predict(params: Probe, features: Mapping[str, Array]) -> dict[str, Array]:
    def one(kernel: Array, bias: Array, x: Array) -> Array:
        logits = x @ kernel + bias
        return jnp.where(jnp.isfinite(logits).all(axis=-1), jnp.argmax(logits, axis=-1), -1)

    across = jax.vmap(one, in_axes=(0, 0, None))
    return {name: across(params[name]["kernel"], params[name]["bias"], features[name]) for name in params}


def accuracies(predictions: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the accuracy (0 to 1) of each choice, `(rates,)`, from the labels that `predict` returned."""
    return {name: np.mean(found == labels, axis=-1) for name, found in predictions.items()}


def best(scores: Mapping[str, np.ndarray]) -> tuple[str, int]:
    """Returns the choice and the index of the learning rate that score highest, the earlier ones on a tie."""
    name = max(scores, key=lambda name: float(np.max(scores[name])))
    return name, int(np.argmax(scores[name]))


def hold_out(
    labels: np.ndarray, *, share: float, seed: int, names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples at random into those to train on and those to choose by, alike for every class.

    Args:
      labels: `(samples,)`.
      share: of each class that is held out, one sample at least; above 0 and below 1.
      names: of the classes, for the message.

    Returns:
      indices of both, sorted.

    Raises:
      ValueError: when a class has a single sample, or for another share.
    """
    check_share(share)
    rng = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(
                f"class {names[label] if names else label} has a single training sample: none is left to choose by"
            )
        held.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def check_share(share: float, name: str = "share") -> None:
    """Raises ValueError for a share to hold out, called `name`, that is not above 0 and below 1."""
    if not 0 < share < 1:
        raise ValueError(f"{name} {share:g} must lie between 0 and 1: it is the fraction held out to choose by")
