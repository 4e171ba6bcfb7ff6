"""Classifies features by their weighted nearest neighbours: DINO, arXiv 2104.14294, section 4.1."""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dino_jax.evals.neighbours import check_features, check_ks, neighbours

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

    Args:
      train_features: `(train, dim)`, any float dtype.
      train_labels: `(train,)` integers, 0 or more.
      test_features: `(test, dim)`.
      test_labels: `(test,)`.
      ks: numbers of neighbours.
      temperature: of the vote, see `vote`.
      block: queries at a time.

    Raises:
      ValueError: when shapes disagree, a k is not in [1, train], a feature is not finite or a label is negative.
    """
    check_labels("train", train_features, train_labels)
    check_labels("test", test_features, test_labels)
    check_ks(ks, len(train_features))
    cosines, indices = neighbours(train_features, test_features, k=max(ks), block=block)
    classes = int(max(np.max(train_labels), np.max(test_labels))) + 1
    winners = vote(cosines, train_labels[indices], ks=ks, temperatures=(temperature,), classes=classes)[0]
    return {int(k): float(np.mean(winner == test_labels)) for k, winner in zip(ks, winners, strict=True)}


def vote(
    cosines: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float] = (TEMPERATURE,),
    classes: int,
    block: int = 1024,
) -> np.ndarray:
    """Lets the k nearest neighbours vote, for every k and temperature in one pass.

    A neighbour's vote weighs exp(cosine / temperature), so an infinite temperature is a plain majority. Votes are
    added from the nearest neighbour on, and the lowest label wins a tie.

    Args:
      cosines: `(queries, neighbours)`, nearest first.
      labels: `(queries, neighbours)` of the neighbours, below `classes`.

    Returns:
      winning labels int32 `(temperatures, ks, queries)`.
    """
    temperature = jnp.asarray(temperatures, jnp.float32)
    block = min(block, len(cosines))
    parts = []
    for start in range(0, len(cosines), block):
        rows = slice(start, start + block)
        padding = ((0, block - len(cosines[rows])), (0, 0))
        near, label = np.pad(cosines[rows], padding), np.pad(np.asarray(labels[rows], np.int32), padding)
        winners = np.asarray(_winners(near, label, temperature, ks=tuple(ks), classes=classes))
        parts.append(winners[..., : len(cosines[rows])])
    return np.concatenate(parts, axis=-1)


def few_shot(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: int,
    draws: int = 5,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Classifies by `shots` random training images per class, in several draws, which are the same at each call.

    Args:
      shots: images of each class, without replacement.
      draws: number of independent draws.
      k: neighbours that vote; all images drawn when there are fewer.

    Returns:
      accuracies float64 `(draws,)`.

    Raises:
      ValueError: when a class has fewer images, for no draws, or as `knn`.
    """
    counts = np.bincount(train_labels, minlength=int(np.max(test_labels, initial=0)) + 1)
    if draws < 1:
        raise ValueError(f"few-shot k-NN: {draws} draws give no accuracy; set draws to 1 or more")
    if shots < 1 or counts.min() < shots:
        raise ValueError(
            f"few-shot k-NN: {draws} draws of {shots} images per class, but class {counts.argmin()} has "
            f"{counts.min()} training images; give 1 <= shots <= that number"
        )
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(train_labels == label) for label in range(len(counts))]
    accuracies = []
    for _ in range(draws):
        drawn = np.concatenate([rng.choice(places, shots, replace=False) for places in members])
        used = min(k, len(drawn))
        test = test_features, test_labels
        accuracies.append(
            knn(train_features[drawn], train_labels[drawn], *test, ks=(used,), temperature=temperature)[used]
        )
    return np.array(accuracies)


def raw_pixels(images: Iterable[np.ndarray]) -> np.ndarray:
    """Turns images `(height, width, channels)`, uint8 or uint16, into features `(images, 16 * 16 * channels)` float32.

    Each image is resized to 16 x 16 (Lanczos) and scaled to [0, 1]. Pixels are all positive, so without subtracting the
    mean of the training images their cosines mostly compare brightness.
    """
    return np.stack([_shrunk(image).ravel() for image in images])


def _shrunk(image: np.ndarray) -> np.ndarray:
    """Resizes an image to 16 x 16, channel by channel, and scales it to [0, 1]; float32."""
    planes = np.moveaxis(image if image.dtype == np.uint8 else image.astype(np.float32), -1, 0)
    small = [np.asarray(Image.fromarray(plane).resize((16, 16), Image.Resampling.LANCZOS)) for plane in planes]
    return np.stack(small, axis=-1).astype(np.float32) / np.iinfo(image.dtype).max


def check_labels(name: str, features: np.ndarray, labels: np.ndarray) -> None:
    """Raises ValueError unless `labels` `(n,)` are 0 or more, one for each of the features `(n, dim)`."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            f"k-NN: {name} features {features.shape} and labels {labels.shape} must be (n, dim) and (n,), n >= 1"
        )
    check_features(name, features)
    if labels.min() < 0:
        raise ValueError(f"k-NN: {name} labels hold {labels.min()}; leave unlabelled samples out")


@functools.partial(jax.jit, static_argnames=("ks", "classes"))
def _winners(
    cosines: jax.Array, labels: jax.Array, temperatures: jax.Array, *, ks: tuple[int, ...], classes: int
) -> jax.Array:
    """Returns the winning labels `(temperatures, ks, queries)`."""
    # Relative to the nearest, which changes no winner and cannot overflow.
    weights = jnp.exp((cosines - cosines[:, :1]) / temperatures[:, None, None])
    rows = jnp.arange(len(cosines))

    def add_vote(votes: jax.Array, neighbour: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weight, label = neighbour
        return votes.at[:, rows, label].add(weight, unique_indices=True), None

    votes = jnp.zeros((len(temperatures), len(cosines), classes))
    counted, winners = 0, {}
    for k in sorted(set(ks)):
        # One neighbour after the other: the order of the sum is fixed, so equal votes tie exactly.
        new = (jnp.moveaxis(weights[..., counted:k], -1, 0), labels[:, counted:k].T)
        votes, _ = jax.lax.scan(add_vote, votes, new)
        counted, winners[k] = k, jnp.argmax(votes, axis=-1).astype(jnp.int32)
    return jnp.stack([winners[k] for k in ks], axis=1)
