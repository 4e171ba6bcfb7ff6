"""Multinomial logistic regression by L-BFGS on frozen features, for several strengths of regularisation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from dino_jax.evals.features import check_finite

# The quick check of DINOv2 sweeps 1e-6 to 1e5; outside this range accuracy hardly changes on centred, scaled features.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MOST_STEPS = 200  # of L-BFGS
MEMORY = 10  # SciPy's default, which scikit-learn uses
BLOCK = 8192  # samples whose logits exist at once

Params = dict[str, Array]


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    strengths: tuple[float, ...] = STRENGTHS,
    most_steps: int = MOST_STEPS,
    tolerance: float = 1e-4,
) -> Params:
    """Minimises cross-entropy plus an L2 penalty on the weights, not on the bias.

    The objective is scikit-learn's, C * (sum of losses) + |weights|^2 / 2, divided by C * samples.

    Args:
      features: `(samples, dim)`.
      labels: `(samples,)` integers below `classes`.
      strengths: the C of each regression.
      most_steps: of L-BFGS.
      tolerance: the largest component of the gradient at which a regression is done.

    Returns:
      "kernel" `(strengths, dim, classes)` and "bias" `(strengths, classes)`.

    Raises:
      ValueError: labels out of range, one class, shapes that disagree, or features that are not finite.
    """
    _check(features, labels, classes, strengths)
    x, y, weights = _blocks(features, labels)
    penalties = jnp.asarray([1 / (c * len(features)) for c in strengths], jnp.float32)
    return _minimise(x, y, weights, penalties, classes=classes, most_steps=most_steps, tolerance=tolerance)


def predict(params: Params, features: np.ndarray) -> np.ndarray:
    """Returns labels int `(strengths, samples)`."""
    parts = [
        np.argmax(np.asarray(_logits(params, jnp.asarray(features[start : start + BLOCK], jnp.float32))), axis=-1)
        for start in range(0, len(features), BLOCK)
    ]
    return np.concatenate(parts, axis=-1)


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Centres features and divides all dimensions by one number, so that a strength means the same for every model.

    Args:
      train: `(samples, dim)`, whose mean and standard deviation are used.
      others: features treated alike.
    """
    mean = train.mean(axis=0)
    scale = max(float((train - mean).std()), 1e-12)
    return [((array - mean) / scale).astype(np.float32) for array in (train, *others)]


@jax.jit
def _logits(params: Params, x: Array) -> Array:
    return jnp.einsum("nd,rdc->rnc", x, params["kernel"]) + params["bias"][:, None]


@functools.partial(jax.jit, static_argnames=("classes", "most_steps", "tolerance"))
def _minimise(
    x: Array, y: Array, weights: Array, penalties: Array, *, classes: int, most_steps: int, tolerance: float
) -> Params:
    """Runs one regression after another on `(blocks, block, dim)` samples, each until it is done."""
    optimizer = optax.lbfgs(memory_size=MEMORY)
    count = weights.sum()

    def loss(params: Params, penalty: Array) -> Array:
        # Blocks are recomputed in the backward pass, so that the logits of all samples never exist at once.
        @jax.checkpoint
        def add(total: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
            features, labels, weight = block
            logits = jnp.matmul(features, params["kernel"], precision=jax.lax.Precision.HIGHEST) + params["bias"]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return total + jnp.sum(weight * losses), None

        total, _ = jax.lax.scan(add, jnp.zeros(()), (x, y, weights))
        return total / count + 0.5 * penalty * jnp.sum(jnp.square(params["kernel"]))

    def run(penalty: Array) -> Params:
        objective = functools.partial(loss, penalty=penalty)
        value_and_gradient = optax.value_and_grad_from_state(objective)

        def go_on(carry: tuple[Params, Any]) -> Array:
            state = carry[1]
            steps = optax.tree.get(state, "count")
            largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(optax.tree.get(state, "grad"))]))
            return (steps == 0) | ((steps < most_steps) & (largest > tolerance))

        def step(carry: tuple[Params, Any]) -> tuple[Params, Any]:
            params, state = carry
            value, gradient = value_and_gradient(params, state=state)
            updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=objective)
            return optax.apply_updates(params, updates), state

        start = {"kernel": jnp.zeros((x.shape[-1], classes)), "bias": jnp.zeros(classes)}
        return jax.lax.while_loop(go_on, step, (start, optimizer.init(start)))[0]

    # Not vmap: its conditions compute both branches, and its scans copy the features for every strength.
    return jax.lax.map(run, penalties)


def _blocks(features: np.ndarray, labels: np.ndarray) -> tuple[Array, Array, Array]:
    """Cuts samples into `(blocks, block, ...)`, with weight 0 on those that fill up the last one."""
    count = -(-len(features) // BLOCK)
    size = -(-len(features) // count)
    padding = count * size - len(features)
    x = np.pad(np.asarray(features, np.float32), ((0, padding), (0, 0))).reshape(count, size, -1)
    y = np.pad(np.asarray(labels, np.int32), (0, padding)).reshape(count, size)
    weights = np.pad(np.ones(len(features), np.float32), (0, padding)).reshape(count, size)
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(weights)


def _check(features: np.ndarray, labels: np.ndarray, classes: int, strengths: tuple[float, ...]) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            f"logistic regression: features {features.shape} and labels {labels.shape} must be (n, dim) and (n,)"
        )
    check_finite(features, "logistic regression: features")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"logistic regression: label {wrong} is out of range, there are {classes} classes from 0")
    if len(np.unique(labels)) < 2:
        raise ValueError("logistic regression: all labels are of one class; give two or more")
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"logistic regression: strengths {strengths} must be above 0")
