"""Patch features for the dense tasks: of a model, and of raw pixels for comparison."""

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from dino_jax import sharding
from dino_jax.collect import of_images
from dino_jax.data.fit import resize
from dino_jax.data.windows import patch_multiple
from dino_jax.evals.features import check_finite
from dino_jax.models import Extractor
from dino_jax.models.extractor import IMAGENET_MEAN, IMAGENET_STD

CELLS = 4  # raw pixels: a patch is shrunk to this many cells a side


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["patch_size"])
@dataclasses.dataclass(frozen=True)
class PixelPatches:
    """Uses the colours of a patch's 4 x 4 cells as its features; called like an `Extractor`."""

    patch_size: int
    name = "raw pixels"
    width = 3 * CELLS**2

    def normalize(self, images: Array) -> Array:
        """Brings uint8 images `(..., channels)` to mean 0 and deviation 1 of photographs."""
        return (images / 255 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)

    def __call__(self, images: Array) -> dict[str, Array]:
        """Returns "patches" `(batch, rows, columns, 48)`."""
        batch, height, width, channels = images.shape
        rows, columns = height // self.patch_size, width // self.patch_size
        small = jax.image.resize(images, (batch, rows * CELLS, columns * CELLS, channels), "linear")
        return {"patches": rearrange(small, "b (r y) (c x) d -> b r c (y x d)", y=CELLS, x=CELLS)}


class PatchFeatures:
    """Computes patch features of any number of images, spread over all devices.

    Attributes:
      model: what computes them.
      name: of the features, for tables.
      key: what their numbers' names begin with, "" for the model itself.
      patch_size: pixels from one patch to the next.
      width: dimensions of a feature.
    """

    def __init__(self, model: Extractor | PixelPatches, *, batch_size: int, key: str = ""):
        """Places the model.

        Raises:
          ValueError: when it has no patches.
        """
        self.name, self.key, self.patch_size = model.name, key, model.patch_size
        self._mesh = sharding.make_mesh()
        self._batch = batch_size
        self.model = jax.device_put(model, sharding.replicated(self._mesh))
        side = 2 * model.patch_size
        shape = jax.eval_shape(_patches, model, jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)).shape
        if len(shape) != 4 or min(shape) == 0:
            raise ValueError(f"{model.name} gives no patch features, which this task needs: use another network")
        self.width = shape[-1]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the features of uint8 images `(images, height, width, 3)`, float32 `(images, rows, columns, dim)`.

        Sides are multiples of the patch size. Few images take a smaller batch, see `collect.of_images`.

        Raises:
          ValueError: when a feature is not finite.
        """
        apply = functools.partial(_patches, self.model)
        found = of_images(apply, images, batch_size=self._batch, mesh=self._mesh)
        check_finite(found, f"the patch features of {self.name}")
        return found

    def of_sizes(self, images: Sequence[np.ndarray], side: int) -> list[np.ndarray]:
        """Returns the features of images of any sizes, each float32 `(rows, columns, dim)`; equal sizes go together.

        Args:
          side: shorter side to which the images are resized; 0 keeps theirs. Both sides become whole patches.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            groups.setdefault(patch_multiple(image.shape[:2], side, self.patch_size), []).append(place)
        grids: list[np.ndarray] = [np.empty(0)] * len(images)
        for size, places in groups.items():
            found = self(np.stack([resize(images[place], size) for place in places]))
            for place, grid in zip(places, found, strict=True):
                grids[place] = grid
        return grids


@jax.jit
def _patches(model: Extractor | PixelPatches, images: Array) -> Array:
    patches = model(model.normalize(images)).get("patches")
    return jnp.zeros((len(images), 0)) if patches is None else patches


def add_arguments(parser: argparse.ArgumentParser, *, data: str, size: int, batch_size: int | None = 16) -> None:
    """Adds the options that all dense tasks share.

    Args:
      data: says what --data takes.
      size: shorter side of the images by default.
      batch_size: images at once by default; None for a task that takes one after the other.
    """
    parser.add_argument("--data", required=True, metavar="PATH", help=data)
    parser.add_argument(
        "--size", type=int, default=size, help="shorter side of the images in pixels; 0 keeps their own"
    )
    if batch_size is not None:
        parser.add_argument("--batch-size", type=int, default=batch_size, help="images per batch, over all devices")
    parser.add_argument("--limit", type=int, metavar="N", help="use at most N images or videos, spread evenly")
    parser.add_argument("--pixels", action="store_true", help="also evaluate raw pixels as features")


def add_year(parser: argparse.ArgumentParser) -> None:
    """Adds the option that chooses among the layouts of DAVIS."""
    text = "year of DAVIS; 2016 has one object, 2017 several"
    parser.add_argument("--year", type=int, choices=[2016, 2017], default=2017, help=text)


def check(options: argparse.Namespace, *positive: str) -> None:
    """Raises ValueError for numbers that cannot be, of the shared options and those named."""
    for name in ("batch_size", "limit", *positive):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be 1 or more")
    if options.size < 0:
        raise ValueError(f"--size {options.size} must be 0 (keep the images' own) or more")


def compared(model: Extractor, options: argparse.Namespace) -> Iterator[PatchFeatures]:
    """Yields the model's features and, with --pixels, those of raw pixels in patches of the same size."""
    batch_size = getattr(options, "batch_size", 1)
    yield PatchFeatures(model, batch_size=batch_size)
    if options.pixels:
        yield PatchFeatures(PixelPatches(model.patch_size), batch_size=batch_size, key="pixels_")
