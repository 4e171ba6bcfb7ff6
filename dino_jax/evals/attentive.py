"""An attentive probe: a small transformer that classifies frozen patch features of frames.

Three blocks of self-attention over all patches of all frames, and a fourth in which one learnt query attends to them
(DINOv3, arXiv 2508.10104, section 6.3; V-JEPA 2, arXiv 2506.09985). All learning rates are trained on the same batches.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

RATES = (1e-4, 3e-4, 1e-3)
EPOCHS, BATCH_SIZE = 20, 64
SELF_BLOCKS = 3
WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1
INIT_STD = 0.02
BLOCK = 64  # clips that are classified at a time, at most
# Limit of the attention weights and hidden units of one block for the clips of a micro-batch: 0.5 GiB. A training step
# holds some ten times as many; three clips of 1568 tokens with 12 heads are still enough to keep a device busy.
MOST_FORMED = 2**27

Params = dict[str, Any]


def init(key: Array, *, dim: int, classes: int) -> Params:
    """Draws a probe for features of `dim` dimensions, its blocks stacked along a leading axis."""

    def kernel(key: Array, *shape: int) -> Array:
        return INIT_STD * jax.random.truncated_normal(key, -2, 2, shape)

    def block(key: Array) -> Params:
        q, kv, out, up, down = jax.random.split(key, 5)
        return {
            "q": kernel(q, dim, dim),
            "kv": kernel(kv, dim, 2 * dim),
            "out": kernel(out, dim, dim),
            "up": kernel(up, dim, 4 * dim),
            "up_bias": jnp.zeros(4 * dim),
            "down": kernel(down, 4 * dim, dim),
            "down_bias": jnp.zeros(dim),
            "norms": jnp.ones((2, dim)),
        }

    blocks, pool, query, head = jax.random.split(key, 4)
    return {
        "blocks": jax.vmap(block)(jax.random.split(blocks, SELF_BLOCKS)),
        "pool": block(pool),
        "query": kernel(query, 1, dim),
        "head": kernel(head, dim, classes),
        "head_bias": jnp.zeros(classes),
    }


def logits(params: Params, features: Array, *, heads: int) -> Array:
    """Classifies clips.

    Args:
      features: `(clips, frames, height, width, dim)`.
      heads: of the attention; divides dim.

    Returns:
      float32 `(clips, classes)`.
    """
    clips, *grid, dim = features.shape
    tokens = _norm(features.astype(jnp.float32)) + _positions(grid, dim)
    tokens = tokens.reshape(clips, -1, dim)

    def self_attention(tokens: Array, block: Params) -> tuple[Array, None]:
        return _block(block, tokens, _norm(tokens) * block["norms"][0], heads), None

    tokens, _ = jax.lax.scan(self_attention, tokens, params["blocks"])
    query = jnp.broadcast_to(params["query"], (clips, 1, dim))
    pooled = _block(params["pool"], query, _norm(tokens), heads)[:, 0]
    return _norm(pooled) @ params["head"] + params["head_bias"]


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    heads: int,
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    advance: Callable[[float], Any] = lambda loss: None,
) -> Params:
    """Trains probes with AdamW, one for each learning rate: linear warm-up over a tenth of the steps, then a cosine.

    Args:
      features: `(clips, frames, height, width, dim)`, any float.
      labels: `(clips,)` below `classes`.
      advance: is told the lowest loss after each step.

    Returns:
      Parameters with a leading axis of rates.

    Raises:
      ValueError: shapes that disagree, labels out of range, or one class.
    """
    _check(features, labels, classes, heads)
    batch_size = min(batch_size, len(features))
    steps = epochs * (len(features) // batch_size)
    start = init(jax.random.key(seed), dim=features.shape[-1], classes=classes)
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rates), *x.shape)), start)
    state = jax.vmap(_adam().init)(params)
    rng = np.random.default_rng(seed)
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(features))[: len(features) // batch_size * batch_size]
        for chosen in order.reshape(-1, batch_size):
            now = np.asarray(rates, np.float32) * np.float32(_share(step, steps))
            batch = jnp.asarray(features[chosen]), jnp.asarray(labels[chosen])
            params, state, losses = _train_step(params, state, *batch, now, heads=heads)
            step += 1
            advance(float(jnp.nanmin(losses)))
    return params


def predict(params: Params, features: np.ndarray, *, heads: int) -> np.ndarray:
    """Returns labels int `(rates, clips)`, -1 where a probe has diverged."""
    parts = []
    block = min(BLOCK, _clips_at_once(features.shape, heads))
    for start in range(0, len(features), block):
        part = features[start : start + block]
        padded = np.pad(part, [(0, block - len(part)), *[(0, 0)] * (part.ndim - 1)])
        parts.append(np.asarray(_predict(params, jnp.asarray(padded), heads=heads))[:, : len(part)])
    return np.concatenate(parts, axis=1)


def _share(step: int, steps: int) -> float:
    """Returns the learning rate of a step over the peak."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


def _adam() -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(WEIGHT_DECAY, mask=_decayed))


def _decayed(params: Params) -> Params:
    """Tells which parameters decay: matrices, neither norms nor biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(word in str(path[-1]) for word in ("bias", "norms")), params
    )


def _clips_at_once(shape: Sequence[int], heads: int) -> int:
    """Returns how many clips may be computed side by side, of features `(clips, frames, height, width, dim)`."""
    *grid, dim = shape[1:]
    tokens = math.prod(grid)
    formed = tokens * (heads * tokens + 4 * dim)  # attention weights and hidden units
    return max(1, MOST_FORMED // formed)


@functools.partial(jax.jit, static_argnames="heads", donate_argnums=(0, 1))
def _train_step(
    params: Params, state: Any, features: Array, labels: Array, rates: Array, *, heads: int
) -> tuple[Params, Any, Array]:
    """Updates the probe of one rate after another; side by side, they would need their memory at once."""
    batch = _micro_batches(features, labels, most=_clips_at_once(features.shape, heads))

    def one(probe: tuple[Params, Any, Array]) -> tuple[Params, Any, Array]:
        params, state, rate = probe
        value, gradient = _loss_and_gradient(params, batch, heads=heads)
        updates, state = _adam().update(gradient, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, value

    return jax.lax.map(one, (params, state, rates))


def _loss_and_gradient(params: Params, batch: tuple[Array, Array, Array], *, heads: int) -> tuple[Array, Params]:
    """Adds up the weighted loss and its gradient over micro-batches, so that only one has activations in memory."""

    def loss(params: Params, features: Array, labels: Array, weights: Array) -> Array:
        found = logits(params, features, heads=heads)
        return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(found, labels))

    def add(total: tuple[Array, Params], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Params], None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

    return jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), batch)[0]


def _micro_batches(features: Array, labels: Array, *, most: int) -> tuple[Array, Array, Array]:
    """Cuts a batch into features, labels and weights `(parts, clips, ...)`; those that fill up the last have weight 0.

    The weights sum to 1: the sum of the weighted losses is the mean of the batch.
    """
    count = -(-len(labels) // most)
    size = -(-len(labels) // count)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, [(0, count * size - len(x)), *[(0, 0)] * (x.ndim - 1)])
        return padded.reshape(count, size, *x.shape[1:])

    return cut(features), cut(labels), cut(jnp.full(len(labels), 1 / len(labels)))


@functools.partial(jax.jit, static_argnames="heads")
def _predict(params: Params, features: Array, *, heads: int) -> Array:
    found = jax.lax.map(lambda params: logits(params, features, heads=heads), params)
    return jnp.where(jnp.isfinite(found).all(axis=-1), jnp.argmax(found, axis=-1), -1)


def _block(block: Params, queries: Array, context: Array, heads: int) -> Array:
    """Lets `queries` `(clips, queries, dim)` attend to `context` `(clips, tokens, dim)`, then an MLP; both residual."""
    clips, count, dim = queries.shape

    def split(x: Array) -> Array:
        return x.reshape(clips, -1, heads, dim // heads)

    normed = _norm(queries) * block["norms"][0]
    key, value = jnp.split(context @ block["kv"], 2, axis=-1)
    attended = jax.nn.dot_product_attention(split(normed @ block["q"]), split(key), split(value))
    queries = queries + attended.reshape(clips, count, dim) @ block["out"]
    hidden = jax.nn.gelu((_norm(queries) * block["norms"][1]) @ block["up"] + block["up_bias"])
    return queries + hidden @ block["down"] + block["down_bias"]


def _norm(x: Array) -> Array:
    """Standardises the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)


def _positions(grid: Sequence[int], dim: int) -> np.ndarray:
    """Returns sines and cosines of frame, row and column, `(frames, height, width, dim)`."""
    each = dim // 6  # sines and cosines of three axes; what is left over stays 0
    frequencies = 1 / 10000 ** (np.arange(each) / max(each, 1))
    axes = np.meshgrid(*(np.arange(size) for size in grid), indexing="ij")
    angles = [axis[..., None] * frequencies for axis in axes]
    waves = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1)
    return np.pad(waves, [(0, 0)] * len(grid) + [(0, dim - waves.shape[-1])]).astype(np.float32)


def _check(features: np.ndarray, labels: np.ndarray, classes: int, heads: int) -> None:
    if features.ndim != 5 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            f"attentive probe: features {features.shape} and labels {labels.shape} must be "
            "(clips, frames, height, width, dim) and (clips,)"
        )
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"attentive probe: label {wrong} is out of range, there are {classes} classes from 0")
    if len(np.unique(labels)) < 2:
        raise ValueError("attentive probe: all clips are of one class; give two or more")
    if features.shape[-1] % heads or features.shape[-1] < 6:
        raise ValueError(f"attentive probe: {heads} heads do not divide features of {features.shape[-1]} dimensions")
