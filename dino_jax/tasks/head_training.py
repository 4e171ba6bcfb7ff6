"""Batches for the heads on patch features: random crops, fresh in every step or a fixed number of each image."""

import argparse
import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from dino_jax import host_memory
from dino_jax.data.reading import read_ahead
from dino_jax.data.subset import evenly
from dino_jax.data.windows import random_crop
from dino_jax.evals import patch_head
from dino_jax.progress import Progress
from dino_jax.tasks.kept import Kept, add_cache
from dino_jax.tasks.patches import PatchFeatures

Batch = tuple[np.ndarray, np.ndarray]
CROPS_AHEAD = 4  # batches of crops in the making
SAMPLED = 8  # images that tell data sets apart whose files have the same names


class Pairs(Protocol):
    """Images uint8 `(height, width, 3)` with maps `(rows, columns)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Crops:
    """How training crops are drawn; see `data.windows.random_crop`."""

    size: tuple[int, int]
    side: int
    scale: tuple[float, float]
    fill: float


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, learning_rate: float) -> None:
    """Adds the options of the training of a head."""
    parser.add_argument("--steps", type=int, default=steps, help="training steps of the head")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="peak learning rate of AdamW")
    parser.add_argument(
        "--weight-decay", type=float, default=patch_head.Schedule.weight_decay, help="weight decay of AdamW"
    )
    parser.add_argument(
        "--views",
        type=int,
        default=0,
        metavar="N",
        help="compute the features of N crops of each image once and train on them; 0 draws fresh crops in every step, "
        "as published, which is slower because the network runs in each",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed for crops, order and head")
    add_cache(parser)


def train_head(
    features: PatchFeatures,
    data: Pairs,
    indices: list[int],
    *,
    crops: Crops,
    outputs: int,
    loss: patch_head.Loss,
    options: argparse.Namespace,
) -> patch_head.Head:
    """Trains a head on crops of the images at `indices`, and shows how far it is.

    Args:
      outputs, loss: see `patch_head.fit_head`.
      options: of `add_arguments`, and the batch size.

    Raises:
      ValueError: for a number of views, a learning rate or a weight decay that cannot be.
    """
    if options.views < 0:
        raise ValueError(f"--views {options.views} must be 0 or more")
    if not (0 < options.learning_rate < math.inf and 0 <= options.weight_decay < math.inf):
        rate, decay = options.learning_rate, options.weight_decay
        raise ValueError(f"--learning-rate {rate:g} must be above 0, and --weight-decay {decay:g} 0 or more")
    kept = Kept(features.model, lambda: [outputs, *_described(data, indices)], options)
    shown = Progress(options.steps)
    try:
        head, _ = patch_head.fit_head(
            training_batches(features, data, indices, crops=crops, options=options, done=kept.step),
            dim=features.width,
            outputs=outputs,
            loss=loss,
            schedule=patch_head.Schedule(options.steps, options.learning_rate, options.weight_decay),
            seed=options.seed,
            report=lambda step, value: shown.update(step, phase=f"head on {features.name}", loss=value),
            done=kept.step,
            restored=kept.restored,
            keep=lambda step, fit: kept.keep(step, fit, last=step == options.steps),
        )
    finally:
        shown.close()
    return head


def _described(data: Pairs, indices: list[int]) -> tuple[list[str], list[int]]:
    """Returns the names of images, and checksums of a few of them with their maps."""
    some = (data[indices[place]] for place in evenly(len(indices), SAMPLED))
    checksums = [zlib.crc32(target.tobytes(), zlib.crc32(image.tobytes())) for image, target in some]
    return [data.name(index) for index in indices], checksums


def training_batches(
    features: PatchFeatures,
    data: Pairs,
    indices: list[int],
    *,
    crops: Crops,
    options: argparse.Namespace,
    done: int = 0,
) -> Iterator[Batch]:
    """Yields patch features and targets of batches of crops, for the steps after `done`.

    Args:
      indices: of the training images.
      options: of `add_arguments`, and the batch size.
      done: steps that were taken already.
    """
    if done == options.steps:
        return
    shuffled = _shuffled(indices if options.views == 0 else range(options.views * len(indices)), options.seed)
    order = itertools.islice(enumerate(shuffled), done * options.batch_size, options.steps * options.batch_size)
    if options.views:
        patches, targets = _fixed_views(features, data, indices, crops=crops, options=options)
        while chosen := [index for _, index in itertools.islice(order, options.batch_size)]:
            yield patches[chosen], targets[chosen]
        return
    for images, targets in _fresh_views(data, order, crops=crops, options=options):
        yield features(images), targets


def _fixed_views(
    features: PatchFeatures, data: Pairs, indices: list[int], *, crops: Crops, options: argparse.Namespace
) -> Batch:
    """Computes the features of `views` crops of each image, in half precision."""
    count, pixels = options.views * len(indices), math.prod(crops.size)
    each = 2 * pixels // features.patch_size**2 * features.width + 4 * pixels  # of float16 and of the maps
    host_memory.check(2 * count * each, f"the features of {count} crops (--views)", "lower --views or --limit")
    parts = []
    reading = read_ahead(data.__getitem__, indices, ahead=options.batch_size)
    for start in range(0, len(indices), options.batch_size):
        pairs = list(itertools.islice(reading, options.batch_size))
        for view in range(options.views):
            drawn = [
                _crop(*pair, crops=crops, seed=(options.seed, view, start + place)) for place, pair in enumerate(pairs)
            ]
            images, targets = (np.stack(part) for part in zip(*drawn, strict=True))
            parts.append((features(images).astype(np.float16), targets))
    patches, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
    return patches, targets


def _fresh_views(
    data: Pairs, order: Iterator[tuple[int, int]], *, crops: Crops, options: argparse.Namespace
) -> Iterator[Batch]:
    """Draws batches of crops, decoded by threads ahead of the consumer.

    Args:
      order: number of each crop, and index of its image.
    """

    def draw(number_and_index: tuple[int, int]) -> Batch:
        number, index = number_and_index
        return _crop(*data[index], crops=crops, seed=(options.seed, number))

    drawing = read_ahead(draw, order, ahead=CROPS_AHEAD * options.batch_size)
    while drawn := list(itertools.islice(drawing, options.batch_size)):
        images, targets = zip(*drawn, strict=True)
        yield np.stack(images), np.stack(targets)


def _crop(image: np.ndarray, target: np.ndarray, *, crops: Crops, seed: tuple[int, ...]) -> Batch:
    random = np.random.default_rng(seed)
    return random_crop(image, target, crops.size, side=crops.side, scale=crops.scale, fill=crops.fill, random=random)


def _shuffled(indices: list[int] | range, seed: int) -> Iterator[int]:
    """Yields the indices in a new random order in every round, without end."""
    random = np.random.default_rng(seed)
    while True:
        yield from random.permutation(np.asarray(indices)).tolist()
