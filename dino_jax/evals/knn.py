"""Classifies features by their weighted nearest neighbours: DINO, arXiv 2104.14294, section 4.1."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07


def knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    block: int = 1024,
) -> dict[int, float]:
    """Returns the accuracy (0 to 1) of the vote of the k nearest training samples, for every k.

    Features are L2-normalised; a neighbour's vote weighs exp(cosine / temperature), so that an infinite temperature is
    a plain majority. Equally near neighbours are taken in the order of the training set and the lowest label wins a
    tied vote. Similarities are computed in float32, `block` test by `block` training samples at a time.

    Args:
      train_features: `(train, dim)`, any float dtype.
      train_labels: `(train,)` integers, 0 or more.
      test_features: `(test, dim)`.
      test_labels: `(test,)`.
      ks: numbers of neighbours.
      temperature: of the vote.
      block: rows per side of one block of the similarity matrix.

    Raises:
      ValueError: when shapes disagree, a k is not in [1, train], a feature is not finite or a label is negative.
    """
    _check(train_features, train_labels, test_features, test_labels, ks)
    classes = int(max(np.max(train_labels), np.max(test_labels))) + 1
    blocks, labels = _train_blocks(train_features, train_labels, min(block, len(train_features)))
    correct = np.zeros(len(ks))
    for start in range(0, len(test_features), block):
        queries = np.asarray(test_features[start : start + block], np.float32)
        padded = np.pad(queries, ((0, min(block, len(test_features)) - len(queries)), (0, 0)))
        votes = _votes(
            padded, blocks, labels, train=len(train_features), ks=tuple(ks), classes=classes, temperature=temperature
        )
        correct += np.sum(np.asarray(votes)[:, : len(queries)] == test_labels[start : start + block], axis=1)
    return {int(k): float(count / len(test_features)) for k, count in zip(ks, correct, strict=True)}


def raw_pixels(images: np.ndarray, *, side: int = 16, mean: np.ndarray | None = None) -> np.ndarray:
    """Turns images `(images, height, width, 3)` uint8 into pixel features `(images, side * side * 3)` float32.

    Each image is resized to `side` x `side` (Lanczos) and scaled to [0, 1]; `mean`, the mean feature of the training
    images, is then subtracted. Uncentred pixels are all positive, so their cosines mostly compare brightness.
    """
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)) for image in images]
    features = np.stack(small).reshape(len(small), -1).astype(np.float32) / 255
    return features if mean is None else features - mean


def _check(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    ks: Sequence[int],
) -> None:
    """Raises ValueError for input that would give a wrong accuracy."""
    for name, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
            raise ValueError(
                f"k-NN: {name} features {features.shape} and labels {labels.shape} must be (n, dim) and (n,), n >= 1"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"k-NN: {name} features are not all finite; check the model that made them")
        if labels.min() < 0:
            raise ValueError(f"k-NN: {name} labels hold {labels.min()}; leave unlabelled samples out")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(f"k-NN: train has {train_features.shape[1]} dimensions, test {test_features.shape[1]}")
    wrong = [k for k in ks if not 1 <= k <= len(train_features)]
    if wrong:
        raise ValueError(f"k-NN: k = {wrong} for {len(train_features)} training samples; give 1 <= k <= that number")


def _train_blocks(features: np.ndarray, labels: np.ndarray, block: int) -> tuple[jax.Array, jax.Array]:
    """Puts the training set on the device as `(blocks, block, dim)` unit vectors, and `(train,)` labels."""
    padding = -len(features) % block
    padded = np.pad(np.asarray(features, np.float32), ((0, padding), (0, 0)))
    return _unit(jnp.asarray(padded)).reshape(-1, block, features.shape[1]), jnp.asarray(labels, jnp.int32)


@functools.partial(jax.jit, static_argnames=("train", "ks", "classes", "temperature"))
def _votes(
    queries: jax.Array,
    blocks: jax.Array,
    labels: jax.Array,
    *,
    train: int,
    ks: tuple[int, ...],
    classes: int,
    temperature: float,
) -> jax.Array:
    """Returns the winning labels `(len(ks), queries)`; `train` is the number of samples in `blocks` before padding."""
    cosines, neighbours = _neighbours(_unit(queries), blocks, k=max(ks), train=train)
    weights = jnp.exp(cosines / temperature)

    def add_vote(votes: jax.Array, neighbour: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weight, label = neighbour
        votes = votes + weight[:, None] * jax.nn.one_hot(label, classes)
        return votes, jnp.argmax(votes, axis=1).astype(jnp.int32)

    # One neighbour after the other: the order of the sum is fixed, and every k is served by one pass.
    _, winners = jax.lax.scan(add_vote, jnp.zeros((len(queries), classes)), (weights.T, labels[neighbours].T))
    return winners[jnp.array(ks) - 1]


def _neighbours(queries: jax.Array, blocks: jax.Array, *, k: int, train: int) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and training indices `(queries, k)` of the nearest, nearest first, earlier index on a tie."""
    block = blocks.shape[1]

    def merge(best: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]):
        index, features = part
        cosines = jnp.matmul(queries, features.T, precision=jax.lax.Precision.HIGHEST)
        indices = jnp.broadcast_to(index * block + jnp.arange(block), cosines.shape)
        candidates = jnp.concatenate([best[0], jnp.where(indices < train, cosines, -jnp.inf)], axis=1)
        # top_k prefers the earlier position of a tie, and earlier blocks stand first.
        cosines, positions = jax.lax.top_k(candidates, k)
        return (cosines, jnp.take_along_axis(jnp.concatenate([best[1], indices], axis=1), positions, axis=1)), None

    nothing = (jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
    best, _ = jax.lax.scan(merge, nothing, (jnp.arange(len(blocks)), blocks))
    return best


def _unit(features: jax.Array) -> jax.Array:
    """L2-normalises the last axis; a zero vector stays zero."""
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
