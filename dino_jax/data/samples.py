"""The crops of one image after the other, in the order and the sizes that a seed gives."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import grain
import numpy as np

from dino_jax.data.decode import BadImage
from dino_jax.data.reading import Batch
from dino_jax.data.sources import Source

ATTEMPTS = 64  # replacements of one unreadable image; this many in a row mean that hardly any image is readable
NOTHING_READABLE = -1  # the id of a sample for which none of them was


class Sizes(NamedTuple):
    """The sides of a batch's crops in pixels, 0 for no Gram crops."""

    global_size: int
    local_size: int
    gram_size: int


def draw_sizes(number: int, *, seed: int, sizes: Sequence[Sizes], shares: Sequence[float]) -> Sizes:
    """Draws the sizes of a global batch by its number, each with the probability of its share (DINOv3, section 5.1)."""
    return sizes[np.random.default_rng((seed, number, len(sizes))).choice(len(sizes), p=shares)]


def samples_of(
    source: Source,
    part: range,
    *,
    seed: int,
    batch_size: int,
    crop: Any,
    sizes: Sequence[Sizes],
    shares: Sequence[float],
    empty: np.ndarray,
) -> grain.MapDataset:
    """Returns the samples of a part of the images, without end, every epoch in another order.

    Args:
      part: of the indices of `source`.
      seed: of the order, the crops and the sizes.
      batch_size: images in a global batch, all of which have the same sizes.
      crop: draws the crops of an image, see `crops.multi_crop`.
      sizes, shares: of the crops, and of the batches that have them.
      empty: what is cropped where no image can be decoded, of the channels and type that images have.

    Returns:
      dictionaries of the crops, "labels", "ids" and "replaced", see `pipeline.train_batches`.
    """
    images = grain.MapDataset.range(part.start, part.stop).seed(seed).shuffle().repeat()
    sample = partial(_sample, source=source, part=part, empty=empty)
    if len(sizes) == 1:
        return images.random_map(partial(sample, crop=partial(crop, **sizes[0]._asdict())))
    draw = partial(draw_sizes, seed=seed, sizes=sizes, shares=shares)
    images = images.map_with_index(partial(_number, batch_size=batch_size))
    return images.random_map(partial(_sized_sample, sample=sample, crop=crop, draw=draw))


def _number(position: int, index: int, *, batch_size: int) -> tuple[int, int]:
    """Returns an image's index with the number of its global batch."""
    return index, position // batch_size


def _sized_sample(
    numbered: tuple[int, int],
    rng: np.random.Generator,
    *,
    sample: Callable[..., Batch],
    crop: Any,
    draw: Callable[[int], Sizes],
) -> Batch:
    """Returns what `sample` does, in the sizes of the image's batch."""
    index, number = numbered
    return sample(index, rng, crop=partial(crop, **draw(number)._asdict()))


def _sample(
    index: int, rng: np.random.Generator, *, source: Source, part: range, empty: np.ndarray, crop: Any
) -> Batch:
    """Returns the crops of image `index`, or of another one of its part where it cannot be decoded."""
    sample, replaced = None, -1
    for _ in range(ATTEMPTS):
        try:
            sample = source[index]
            break
        except BadImage:
            replaced = index if replaced < 0 else replaced
            index = int(rng.integers(part.start, part.stop))
    if sample is None:  # of which `bad_images` makes an error that lists them
        index, sample = NOTHING_READABLE, {"image": empty, "label": -1}
    return crop(sample["image"], rng) | {
        "labels": np.int32(sample["label"]),
        "ids": np.int32(index),
        "replaced": np.int32(replaced),
    }
