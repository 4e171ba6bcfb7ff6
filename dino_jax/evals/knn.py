"""Classifies features by their weighted nearest neighbours: DINO, arXiv 2104.14294, section 4.1."""

import functools
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dino_jax.evals.unit import unit

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
# Training samples whose similarities to one block of queries are held at once: 256 MiB for 512 queries.
CHUNK = 131_072
SORTING = 2.5  # cost of sorting a candidate relative to sorting in a maximum, measured on a 2-core CPU


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


def neighbours(
    train_features: np.ndarray,
    queries: np.ndarray,
    *,
    k: int,
    block: int = 512,
    chunk: int = CHUNK,
    placement: jax.sharding.Sharding | None = None,
    whole: jax.sharding.Sharding | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k training samples of largest cosine to each query, exactly.

    Equal float32 cosines are taken in the order of the training set. Instead of sorting all similarities, only the
    maxima of small groups are: each of the k nearest lies in one of the k groups of largest maximum.

    Args:
      train_features: `(train, dim)`, any float dtype; features are L2-normalised here.
      queries: `(queries, dim)`.
      k: number of neighbours.
      block: queries at a time; two blocks may be on their way.
      chunk: training samples at a time.
      placement: spreads each block of queries over devices, such as `sharding.batch(mesh)`; they divide `block`.
      whole: holds the training set on the same devices, such as `sharding.replicated(mesh)`.

    Returns:
      cosines float32 and indices int32, `(queries, k)`, nearest first.

    Raises:
      ValueError: when shapes disagree, k is not in [1, train] or a feature is not finite.
    """
    _check_features("train", train_features)
    _check_features("query", queries)
    check_ks((k,), len(train_features))
    if train_features.shape[1] != queries.shape[1]:
        raise ValueError(f"k-NN: train has {train_features.shape[1]} dimensions, test {queries.shape[1]}")
    chunks, group = _train_chunks(train_features, k, chunk)
    chunks = chunks if whole is None else jax.device_put(chunks, whole)
    if placement is None:  # blocks of one size: the last is not filled up with much
        block = -(-len(queries) // -(-len(queries) // block))

    def search(start: int) -> tuple[np.ndarray, ...]:
        part = np.asarray(queries[start : start + block], np.float32)
        padded = jax.device_put(np.pad(part, ((0, block - len(part)), (0, 0))), placement)
        best = _nearest(padded, chunks, k=k, group=group, train=len(train_features))
        return tuple(np.asarray(array)[: len(part)] for array in best)

    # XLA's CPU sorts with one thread: meanwhile the others multiply the next block.
    with ThreadPoolExecutor(2 if placement is None else 1) as pool:
        found = list(pool.map(search, range(0, len(queries), block)))
    cosines, indices = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return cosines, indices


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
    counts = np.bincount(train_labels)
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


def raw_pixels(images: Iterable[np.ndarray], *, mean: np.ndarray | None = None) -> np.ndarray:
    """Turns images, each `(height, width, 3)` uint8, into pixel features `(images, 16 * 16 * 3)` float32.

    Each image is resized to 16 x 16 (Lanczos) and scaled to [0, 1]; `mean`, the mean feature of the training
    images, is then subtracted. Uncentred pixels are all positive, so their cosines mostly compare brightness.
    """
    small = [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.LANCZOS)) for image in images]
    features = np.stack(small).reshape(len(small), -1).astype(np.float32) / 255
    return features if mean is None else features - mean


def check_labels(name: str, features: np.ndarray, labels: np.ndarray) -> None:
    """Raises ValueError unless `labels` `(n,)` are 0 or more, one for each of the features `(n, dim)`."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            f"k-NN: {name} features {features.shape} and labels {labels.shape} must be (n, dim) and (n,), n >= 1"
        )
    _check_features(name, features)
    if labels.min() < 0:
        raise ValueError(f"k-NN: {name} labels hold {labels.min()}; leave unlabelled samples out")


def check_ks(ks: Sequence[int], train: int) -> None:
    """Raises ValueError for a number of neighbours that `train` samples do not have."""
    wrong = [int(k) for k in ks if not 1 <= k <= train]
    if wrong:
        raise ValueError(f"k-NN: k = {wrong} for {train} training samples; give 1 <= k <= that number")


def _check_features(name: str, features: np.ndarray) -> None:
    if features.ndim != 2 or not len(features):
        raise ValueError(f"k-NN: {name} features {features.shape} must be (n, dim), n >= 1")
    if not np.isfinite(features).all():
        raise ValueError(f"k-NN: {name} features are not all finite; check the model that made them")


def _train_chunks(features: np.ndarray, k: int, chunk: int) -> tuple[jax.Array, int]:
    """Puts the training set on the device as unit vectors `(chunks, group, groups, dim)`, and returns the group size.

    Group g of a chunk holds consecutive samples, but the j-th samples of all groups lie side by side, so that the
    maximum over a group is one of whole rows. Copies of the last sample fill its group, whose maximum they leave as it
    is, and groups of copies alone fill the chunk.
    """
    count = -(-len(features) // chunk)
    size = -(-len(features) // count)
    # `size / group` maxima are sorted in, and `k * group` candidates.
    group = 2 ** max(0, round(np.log2(size / (SORTING * k)) / 2))
    groups = -(-size // group)
    return _grouped(jnp.asarray(features, jnp.float32), shape=(count, groups, group)), group


@functools.partial(jax.jit, static_argnames="shape")
def _grouped(features: jax.Array, *, shape: tuple[int, int, int]) -> jax.Array:
    """Returns unit vectors `(chunks, group, groups, dim)` of `shape` (chunks, groups, group), the last one repeated."""
    copies = jnp.broadcast_to(features[-1], (math.prod(shape) - len(features), features.shape[1]))
    return jnp.swapaxes(unit(jnp.concatenate([features, copies])).reshape(*shape, -1), 1, 2)


@functools.partial(jax.jit, static_argnames=("k", "group", "train"))
def _nearest(queries: jax.Array, chunks: jax.Array, *, k: int, group: int, train: int) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and training indices `(queries, k)`; `train` is the number of samples before padding."""
    queries = unit(queries)
    size = chunks.shape[1] * chunks.shape[2]

    def merge(best: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]):
        first, features = part
        cosines, indices = _nearest_in_chunk(queries, features, k=min(k, size), first=first, train=train)
        # top_k prefers the earlier position of a tie, and earlier chunks stand first.
        near, positions = jax.lax.top_k(jnp.concatenate([best[0], cosines], axis=1), k)
        return (near, jnp.take_along_axis(jnp.concatenate([best[1], indices], axis=1), positions, axis=1)), None

    if len(chunks) == 1:
        return _nearest_in_chunk(queries, chunks[0], k=k, first=jnp.int32(0), train=train)
    nothing = (jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
    best, _ = jax.lax.scan(merge, nothing, (size * jnp.arange(len(chunks)), chunks))
    return best


def _nearest_in_chunk(
    queries: jax.Array, features: jax.Array, *, k: int, first: jax.Array, train: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the k nearest of a chunk `(group, groups, dim)` that starts at sample `first`.

    The k groups that come first by (maximum, position) hold the k samples that come first by (cosine, position): a
    sample of another group is preceded by the largest of each of those. Padding counts as -inf.
    """
    group, groups, dim = features.shape
    cosines = jnp.matmul(queries, features.reshape(-1, dim).T, precision=jax.lax.Precision.HIGHEST)
    cosines = cosines.reshape(-1, group, groups)
    # Compiled as one pass over rows, which the CPU's reduction over a middle axis is not.
    maxima = functools.reduce(jnp.maximum, [cosines[:, member] for member in range(group)])
    maxima = jnp.where(first + group * jnp.arange(groups) < train, maxima, -jnp.inf)
    _, chosen = jax.lax.top_k(maxima, min(k, groups))
    # In the order of the training set, as top_k prefers the earlier position of a tie.
    chosen = jnp.sort(chosen, axis=1)
    candidates = jnp.take_along_axis(cosines, chosen[:, None], axis=2).swapaxes(1, 2).reshape(len(queries), -1)
    indices = (first + group * chosen[:, :, None] + jnp.arange(group)).reshape(len(queries), -1)
    near, positions = jax.lax.top_k(jnp.where(indices < train, candidates, -jnp.inf), k)
    return near, jnp.take_along_axis(indices, positions, axis=1)


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
