"""Finds nearest neighbours exactly: blocks of similarities, and sorting of the maxima of groups alone."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from dino_jax.evals.features import check_finite, unit

# Training samples whose similarities to one block of queries are held at once: 256 MiB for 512 queries.
CHUNK = 131_072
SORTING = 2.5  # cost of sorting a candidate relative to sorting in a maximum, measured on a 2-core CPU


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
    check_features("train", train_features)
    check_features("query", queries)
    check_ks((k,), len(train_features))
    if train_features.shape[1] != queries.shape[1]:
        raise ValueError(f"k-NN: train has {train_features.shape[1]} dimensions, test {queries.shape[1]}")
    rows, group = _train_chunks(train_features, k, chunk)
    chunks = jax.device_put(rows, whole)
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


def check_ks(ks: Sequence[int], train: int) -> None:
    """Raises ValueError for a number of neighbours that `train` samples do not have."""
    wrong = [int(k) for k in ks if not 1 <= k <= train]
    if wrong:
        raise ValueError(f"k-NN: k = {wrong} for {train} training samples; give 1 <= k <= that number")


def check_features(name: str, features: np.ndarray) -> None:
    """Raises ValueError unless the features `(n, dim)` are one or more and finite."""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"k-NN: {name} features {features.shape} must be (n, dim), n >= 1")
    check_finite(features, f"k-NN: {name} features")


def _train_chunks(features: np.ndarray, k: int, chunk: int) -> tuple[np.ndarray, int]:
    """Returns the training set as unit vectors `(chunks, group, groups, dim)`, and the group size.

    Group g of a chunk holds consecutive samples, but the j-th samples of all groups lie side by side, so that the
    maximum over a group is one of whole rows. Copies of the last sample fill its group, whose maximum they leave as it
    is, and groups of copies alone fill the chunk. The device normalises one chunk at a time, so that it never holds two
    copies of the set.
    """
    count = -(-len(features) // chunk)
    size = -(-len(features) // count)
    # `size / group` maxima are sorted in, and `k * group` candidates.
    group = 2 ** max(0, round(np.log2(size / (SORTING * k)) / 2))
    groups = -(-size // group)
    rows = np.empty((count, group, groups, features.shape[1]), np.float32)
    for number in range(count):
        part = features[number * group * groups :][: group * groups]
        copies = np.broadcast_to(features[-1], (group * groups - len(part), features.shape[1]))
        rows[number] = _grouped(np.concatenate([part, copies]).astype(np.float32), groups=groups)
    return rows, group


@functools.partial(jax.jit, static_argnames="groups")
def _grouped(features: jax.Array, *, groups: int) -> jax.Array:
    """Returns the unit vectors `(group, groups, dim)` of a chunk `(groups * group, dim)`."""
    return jnp.swapaxes(unit(features).reshape(groups, -1, features.shape[1]), 0, 1)


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
