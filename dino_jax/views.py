"""What a network sees of single images of any size: patch features and the attention of CLS."""

import bisect
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import jax
import numpy as np
from jax import Array

from dino_jax.data.decode import BadImage
from dino_jax.data.files import is_label, natural
from dino_jax.data.fit import resize
from dino_jax.data.sources import Source
from dino_jax.data.windows import patch_multiple
from dino_jax.models import Extractor


@dataclasses.dataclass(frozen=True)
class Attention:
    """Where CLS looks, in the last block.

    Attributes:
      maps: to the patches, `(heads, height, width)`; registers and CLS itself are left out.
      shares: of each head's attention that goes to CLS, registers and patches, `(heads, 3)`; rows sum to one.
    """

    maps: np.ndarray
    shares: np.ndarray


def to_patches(image: np.ndarray, *, size: int, patch: int) -> np.ndarray:
    """Resizes an image so that its sides are multiples of the patch, its shape kept up to that.

    Args:
      size: of the shorter side in pixels; 0 keeps the size.
    """
    height, width = patch_multiple(image.shape[:2], size, patch)
    return resize(image, (height, width))


def open_some(
    source: Source, indices: Sequence[int], places: Iterable[int], *, size: int, patch: int
) -> list[tuple[str, np.ndarray]]:
    """Opens images; for one that cannot be used, which a line on stderr names, it takes the next that is free.

    Args:
      indices: of the images that may be taken.
      places: in `indices`, of those that are wanted.
      size, patch: see `to_patches`.

    Returns:
      The name and the pixels of each, in the order of `indices`.

    Raises:
      ValueError: when no image can be used.
    """
    opened: dict[int, tuple[str, np.ndarray]] = {}
    waiting = list(places)
    free = sorted(set(range(len(indices))) - set(waiting))
    while waiting:
        place = waiting.pop(0)
        name = source.name(indices[place])
        try:
            opened[place] = name, to_patches(source[indices[place]]["image"], size=size, patch=patch)
        except BadImage as error:
            print(f"{name} cannot be used and is left out: {error}", file=sys.stderr)
            if free:
                waiting.append(free.pop(bisect.bisect(free, place) % len(free)))
    if not opened:
        raise ValueError(f"none of the {len(indices)} images can be used: the lines above say why")
    return [opened[place] for place in sorted(opened)]


def patch_features(model: Extractor, image: np.ndarray) -> np.ndarray:
    """Returns the patch features of one image `(height, width, channels)`, float32 `(rows, columns, dim)`."""
    return np.asarray(patches(model, image[None])[0], np.float32)


def cls_attention(model: Extractor, image: np.ndarray) -> Attention:
    """Returns the attention of CLS for one image `(height, width, channels)`.

    Raises:
      ValueError: for a network without attention.
    """
    weights = np.asarray(cls_row(model, image[None])[0], np.float32)
    rows, columns = (side // model.patch_size for side in image.shape[:2])
    prefix = weights.shape[1] - rows * columns
    shares = np.stack([weights[:, 0], weights[:, 1:prefix].sum(1), weights[:, prefix:].sum(1)], axis=1)
    return Attention(weights[:, prefix:].reshape(-1, rows, columns), shares)


@jax.jit
def patches(model: Extractor, images: Array) -> Array:
    """Returns the patch features `(batch, rows, columns, dim)` of images as they are read."""
    return model(model.normalize(images))["patches"]


@jax.jit
def cls_row(model: Extractor, images: Array) -> Array:
    """Returns the attention of CLS to all tokens in the last block, `(batch, heads, tokens)`, of images as they are."""
    return model.attention(model.normalize(images), queries=1)[:, :, 0]


def photographs(source: Source) -> list[int]:
    """Returns the images of a source that are in no folder of masks or depth maps; all where there are no others."""
    outside = [index for index in range(len(source)) if not is_label(source.name(index))]
    return outside or list(range(len(source)))


def sequences(source: Source) -> dict[str, list[int]]:
    """Groups the images of a source by folder, in the order of the numbers in their names; masks are left out.

    Returns:
      By the name of the sequence, the indices of its frames. It is the last folder, such as "bear" for
      `bear/frames/0.jpg` and for `JPEGImages/480p/bear/00000.jpg`; where several have one name, the whole path.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(source)):
        if is_label(source.name(index)):
            continue
        folders = PurePosixPath(source.name(index)).parent.parts
        found.setdefault(tuple(folder for folder in folders if folder.lower() != "frames"), []).append(index)
    last = [folders[-1:] for folders in found]
    return {
        "/".join(folders if last.count(folders[-1:]) > 1 else folders[-1:]): sorted(
            indices, key=lambda index: natural(source.name(index))
        )
        for folders, indices in found.items()
    }
