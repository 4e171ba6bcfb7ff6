"""Training batches on the host: shuffle, crop, mask, batch, in worker processes, resumable to the sample.

A batch is a pure function of its number, whatever the number of worker processes or of training processes, so the
whole state of the input is that number.
"""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags
from numpy.typing import DTypeLike

from dino_jax.data import fit
from dino_jax.data.crops import GLOBAL_NUMBER, multi_crop
from dino_jax.data.decode import MIN_SIDE
from dino_jax.data.masks import draw_masks
from dino_jax.data.reading import Batch, read_batches
from dino_jax.data.samples import Sizes, samples_of
from dino_jax.data.sources import Source
from dino_jax.data.workers import initialize_worker, signals_held_back

HOMOGENEOUS_STREAM = 2**32  # added to the seed of homogeneous batches
# Each worker holds a batch that is ready and one in the making.
WORKER_BUFFER = 1


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    global_size: int,
    global_scale: tuple[float, float],
    local_size: int,
    local_scale: tuple[float, float],
    local_number: int,
    horizontal_flips: bool,
    patch_size: int,
    mask_ratio: tuple[float, float],
    mask_probability: float,
    mask_group_size: int,
    mask_drawn_sizes: bool = False,
    mask_circular_shift: bool = False,
    gram_size: int = 0,
    mixture: Sequence[tuple[float, int, int, int]] = (),
    homogeneous: int = 0,
    homogeneous_share: float = 0.0,
    channels: int = 3,
    dtype: DTypeLike = np.uint8,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainBatches":
    """Iterates without end over this process's part of the global batches.

    Every epoch is a new permutation of the source; an image that cannot be decoded is replaced by another one, drawn
    from the sample's own random numbers.

    Args:
      source: the images; may be smaller than a batch.
      batch_size: images in a global batch. Process p has its p-th equal part.
      seed: of the order, the crops and the masks.
      global_size, ..., horizontal_flips, gram_size: see `crops.multi_crop`.
      mixture: further (share of the batches, global_size, local_size, gram_size); each batch has one of all sizes.
      homogeneous: how many images at the end of the source are for homogeneous batches: a batch is made of them alone,
        or of the others alone.
      homogeneous_share: share of the batches that are homogeneous; they come at even distances.
      channels, dtype: of the images.
      patch_size: side of a patch in pixels; divides every `global_size`.
      mask_ratio, mask_probability: see `masks.draw_masks`; a probability of 0 leaves the masks out of the batches.
      mask_drawn_sizes, mask_circular_shift: see `masks.draw_masks`.
      mask_group_size: consecutive samples over which the sizes of masks are spread; divides a process's batch.
      workers: processes that prepare batches; 0 for one thread of this process.
      process_index, process_count: of the training processes.

    Returns:
      an iterator over dictionaries with a leading batch dimension, that of this process:
      in the type of the images, "global_crops" (batch, 2, global_size, global_size, channels), "local_crops" (batch,
      local_number, local_size, local_size, channels), and "gram_crops" (batch, 2, gram_size, gram_size, channels) if
      `gram_size`; "masks" bool (batch, 2, patches); "mask_indices" int32 and "mask_weights" float32 (groups, bound),
      see `masks.draw_masks`; "labels" int32 (batch,), -1 unknown; "ids" int32 (batch,), index in the source;
      "replaced" int32 (batch,), index of the unreadable image whose place the sample took, else -1.

    Raises:
      ValueError: an empty source or a size that does not divide as it must.
    """
    local_batch = _local_batch(source, batch_size, process_count, mask_group_size if mask_probability else 1)
    sizes = [Sizes(global_size, local_size, gram_size), *(Sizes(*row[1:]) for row in mixture)]
    for side in (size.global_size for size in sizes):
        if side % patch_size:
            raise ValueError(f"global crops of {side} px are not a multiple of the patch, {patch_size} px")
    crop = partial(
        multi_crop,
        global_scale=global_scale,
        local_scale=local_scale,
        local_number=local_number,
        horizontal_flips=horizontal_flips,
    )
    mask = partial(
        draw_masks,
        crops=mask_group_size * GLOBAL_NUMBER,
        ratio=mask_ratio,
        probability=mask_probability,
        drawn_sizes=mask_drawn_sizes,
        circular_shift=mask_circular_shift,
    )

    shares = [1 - sum(share for share, *_ in mixture), *(share for share, *_ in mixture)]
    options: dict[str, Any] = {"batch_size": batch_size, "crop": crop, "sizes": sizes, "shares": shares}
    options["empty"] = np.zeros((MIN_SIDE, MIN_SIDE, channels), dtype)
    # Whole local batches are dealt to the processes, so that the global batch is the same for any number of them.
    mine = slice(process_index, None, process_count)
    rest = len(source) - homogeneous
    batches = samples_of(source, range(rest), seed=seed, **options).batch(local_batch).slice(mine)
    if homogeneous:
        apart = samples_of(source, range(rest, len(source)), seed=seed + HOMOGENEOUS_STREAM, **options)
        weights = [1 - homogeneous_share, homogeneous_share]
        batches = grain.MapDataset.mix([batches, apart.batch(local_batch).slice(mine)], weights=weights)
    if mask_probability:
        groups = local_batch // mask_group_size
        processes = (process_index, process_count)
        add = partial(_add_masks, mask=mask, seed=seed, groups=groups, processes=processes, patch_size=patch_size)
        batches = batches.map_with_index(add)
    return TrainBatches(batches, workers=workers)


class TrainBatches(grain.DatasetIterator):
    """The batches of `train_batches`; its state is the number of batches taken."""

    def __init__(self, batches: grain.MapDataset, *, workers: int):
        super().__init__()
        self._batches = batches
        self._workers = workers
        self._taken = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        starting = self._iterator is None and self._workers > 0
        self.start_prefetch()
        assert self._iterator is not None
        try:
            # Grain starts its processes when the first batch is asked for.
            with signals_held_back() if starting else contextlib.nullcontext():
                batch = next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            cause, advice = "perhaps for lack of memory", "lower data.workers"
            if f"exit code {-signal.SIGBUS}" in str(error):
                cause, advice = "as /dev/shm is full", "enlarge it (docker run --shm-size=8g)"
            raise OSError(
                f"a process that prepares batches ended ({error}), {cause}; the last checkpoint is kept: {advice}, "
                "then run the same command"
            ) from None
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the state after the last batch taken; batches that are only prefetched do not count."""
        return {"batches_taken": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues after `state`, which may come from a run with another number of workers."""
        self._stop()
        self._taken = int(state["batches_taken"])

    def start_prefetch(self) -> None:
        """Starts the workers on the next batches."""
        if self._closed:
            raise ValueError("the batches were closed: open them again")
        if self._iterator is None:
            # One thread per process makes whole batches, one ahead: the default is 16 threads and 500 batches.
            read_options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            batches = self._batches[self._taken :].to_iter_dataset(read_options)
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=WORKER_BUFFER)
            if self._workers:
                if not flags.FLAGS.is_parsed():  # in a notebook or a test; Grain reads its own flags
                    flags.FLAGS.mark_as_parsed()
                batches = batches.mp_prefetch(options, worker_init_fn=initialize_worker)
            self._iterator = iter(batches)
            self._iterator.start_prefetch()

    def close(self) -> None:
        """Stops the workers."""
        self._stop()
        self._closed = True

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def eval_batches(source: Source, *, size: int, batch_size: int) -> Iterator[Batch]:
    """Iterates once over a source in order, one centred square per image.

    The shorter side is resized to `size` (bicubic, antialiased) and the centre cut out.

    Returns:
      an iterator over "images" (batch, size, size, channels); "labels", "ids" int32 (batch,); "valid" bool (batch,),
      False on the zeros that fill up the last batch and on images that cannot be decoded.
    """
    prepare = partial(fit.centre_crop, size=size)
    return read_batches(source, range(len(source)), batch_size=batch_size, prepare=prepare)


def _local_batch(source: Source, batch_size: int, process_count: int, mask_group_size: int) -> int:
    """Returns the number of images of each process, once it is sure that the sizes fit together."""
    if not len(source):
        raise ValueError("the data source holds no images")
    if batch_size % process_count:
        raise ValueError(f"batch size {batch_size} does not divide by the {process_count} processes")
    local_batch = batch_size // process_count
    if local_batch % mask_group_size:
        raise ValueError(
            f"mask_group_size {mask_group_size} must divide the batch of one process, {local_batch} "
            f"({batch_size} over {process_count} processes)"
        )
    return local_batch


def _add_masks(
    number: int, batch: Batch, *, mask: Any, seed: int, groups: int, processes: tuple[int, int], patch_size: int
) -> Batch:
    """Draws the masks of a batch's groups; a group's number among all groups of the run is its seed.

    Args:
      number: of the batch.
      processes: the index of this one, and how many there are.
    """
    index, count = processes
    first = (number * count + index) * groups
    grid = tuple(side // patch_size for side in batch["global_crops"].shape[2:4])
    drawn = [mask(np.random.default_rng((seed, group)), grid=grid) for group in range(first, first + groups)]
    masks, indices, weights = (
        np.stack([group[name] for group in drawn]) for name in ("masks", "mask_indices", "mask_weights")
    )
    shape = (*batch["global_crops"].shape[:2], -1)
    return batch | {"masks": masks.reshape(shape), "mask_indices": indices, "mask_weights": weights}
