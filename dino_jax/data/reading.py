"""Evaluation batches on the host: once over a source, in order, decoded by threads ahead of the consumer."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from dino_jax.data.decode import BadImage
from dino_jax.data.sources import Source
from dino_jax.data.subset import evenly

Batch = dict[str, np.ndarray]
Sample = tuple[np.ndarray, int]
Prepare = Callable[[np.ndarray], np.ndarray]
Key = TypeVar("Key")
Item = TypeVar("Item")

AHEAD = 32  # images
BATCHES_AHEAD = 2  # in the making besides the one handed out
MOST_THREADS = 32
# Images of many shapes wait for others of the same shape; at most this many batches of them wait at once.
MOST_WAITING = 4
PROBED = 8
DARK = 3  # images are dark whose brightest sample is this many times below the mean
USABLE = "readable now"  # the reason of an image that can be used


def read_batches(
    source: Source, indices: Sequence[int], *, batch_size: int, prepare: Prepare, threads: int | None = None
) -> Iterator[Batch]:
    """Iterates over `source[index]` for the given indices, in that order whatever the number of threads.

    Args:
      indices: which images; -1 leaves a row empty.
      prepare: brings an image to the shape that all share; see `fit.fit`.
      threads: that decode (default: one for each processor this process may use).

    Yields:
      "images" `(batch, height, width, channels)` in the dtype that `prepare` returns; "labels", "ids" int32 (batch,);
      "valid" bool (batch,), False on the zeros that fill up the last batch and on images that cannot be used.

    Raises:
      ValueError: if the first batch has no usable image and no image of the source is usable.
    """
    ahead = BATCHES_AHEAD * batch_size
    samples = read_samples(source, indices, prepare=prepare, ahead=ahead, threads=threads)
    empty: np.ndarray | None = None  # the zeros of a row without an image
    for start in range(0, len(indices), batch_size):
        rows = indices[start : start + batch_size]
        found = [next(samples) for _ in rows]
        if empty is None:
            empty = _empty(found, source, prepare)
        yield _batch(found, rows, batch_size, empty)


def read_by_shape(
    source: Source, indices: Sequence[int], *, batch_size: int, prepare: Prepare, shards: int = 1
) -> Iterator[Batch]:
    """Iterates as `read_batches`, over images that `prepare` leaves different in shape: each batch has one shape.

    The images are in the order of the source only within a shape; those that cannot be used are in no batch.

    Args:
      batch_size: rows of a batch; fewer images have half as many, a quarter and so on, as long as `shards` divides it.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Sample]]] = {}
    samples = read_samples(source, indices, prepare=prepare, ahead=BATCHES_AHEAD * batch_size)
    for index, sample in zip(indices, samples, strict=True):
        if sample is None:
            continue
        waiting.setdefault(sample[0].shape, []).append((index, sample))
        longest = max(waiting, key=lambda shape: len(waiting[shape]))
        total = sum(len(rows) for rows in waiting.values())
        if len(waiting[longest]) == batch_size or total == MOST_WAITING * batch_size:
            yield _same_shape(waiting.pop(longest), batch_size, shards)
    for rows in waiting.values():
        yield _same_shape(rows, batch_size, shards)


def read_samples(
    source: Source, indices: Sequence[int], *, prepare: Prepare, ahead: int, threads: int | None = None
) -> Iterator[Sample | None]:
    """Yields each prepared image with its label, None for one that cannot be used; `ahead` are in the making."""
    return read_ahead(lambda index: _sample(source, int(index), prepare), indices, ahead=ahead, threads=threads)


def read_ahead(
    read: Callable[[Key], Item], keys: Iterable[Key], *, ahead: int = AHEAD, threads: int | None = None
) -> Iterator[Item]:
    """Yields what is read for each key, such as an index, in order; threads read up to `ahead` more in the meantime.

    Pillow and NumPy release the interpreter's lock where the time goes, so threads decode in parallel.
    """
    pool = ThreadPoolExecutor(threads or min(processors(), MOST_THREADS), thread_name_prefix="decode")
    waiting: collections.deque[Future[Item]] = collections.deque()
    try:
        for key in keys:
            waiting.append(pool.submit(read, key))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sample(source: Source, index: int, prepare: Prepare) -> Sample | None:
    """Returns a prepared image with its label, None where there is none."""
    if index < 0:
        return None
    try:
        sample = source[index]
        return prepare(sample["image"]), sample["label"]
    except BadImage:
        return None


def _empty(samples: list[Sample | None], source: Source, prepare: Prepare) -> np.ndarray:
    """Returns zeros of the shape of a prepared image, of which there may be none in the first batch."""
    found = next((sample for sample in samples if sample is not None), None)
    for index in range(len(source)):
        if found is not None:
            return np.zeros_like(found[0])
        found = _sample(source, index, prepare)
    if found is None:
        raise ValueError(
            f"none of the {len(source)} images can be used, such as {source.name(0)}: {why(source, 0, prepare)}"
        )
    return np.zeros_like(found[0])


def why(source: Source, index: int, prepare: Prepare = lambda image: image) -> str:
    """Returns why an image cannot be used, or brought to size by `prepare`; USABLE if it can."""
    try:
        prepare(source[index]["image"])
    except BadImage as error:
        return str(error)
    return USABLE


def darkness(source: Source, mean: Sequence[float]) -> str:
    """Says in words that images seem to use fewer bits than their files have, "" if they do not.

    Cameras, X-rays and satellites store 12 bits in 16: what is measured then reaches a sixteenth of the range.

    Args:
      mean: of the channels, as the network expects them in [0, 1]: what stays far below is too dark.
    """
    largest, whole = -1, 255
    probed = evenly(len(source), PROBED)
    for index in probed:
        try:
            image = source[index]["image"]
        except BadImage:
            continue
        largest, whole = max(largest, int(image.max(initial=0))), int(np.iinfo(image.dtype).max)
    if largest < 0 or largest >= whole * min(mean) / DARK:  # none can be used, or all is well
        return ""
    looked = f"the brightest of {len(probed)} images reaches {largest} of {whole}"
    return f"{looked}, far below the mean {min(mean):g}: if the files hold 12 bits in 16, scale them up first"


def _same_shape(rows: list[tuple[int, Sample]], batch_size: int, shards: int) -> Batch:
    while batch_size % (2 * shards) == 0 and batch_size // 2 >= len(rows):
        batch_size //= 2
    return _batch([sample for _, sample in rows], [index for index, _ in rows], batch_size, rows[0][1][0] * 0)


def _batch(samples: Sequence[Sample | None], indices: Sequence[int], batch_size: int, empty: np.ndarray) -> Batch:
    """Stacks samples, and empty rows up to `batch_size`."""
    batch = {
        "images": np.zeros((batch_size, *empty.shape), empty.dtype),
        "labels": np.full(batch_size, -1, np.int32),
        "ids": np.full(batch_size, -1, np.int32),
        "valid": np.zeros(batch_size, bool),
    }
    for row, (sample, index) in enumerate(zip(samples, indices, strict=True)):
        batch["ids"][row] = index
        if sample is not None:
            batch["images"][row], batch["labels"][row] = sample
            batch["valid"][row] = True
    return batch
