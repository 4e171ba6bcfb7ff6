"""Draws what a network sees: principal components, attention and cosine maps of patch features."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dino_jax.evals.features import check_finite
from dino_jax.pictures.colors import heat, scale
from dino_jax.pictures.components import shared_components
from dino_jax.pictures.page import PANEL, in_rows, outline, overview, page, save, to_width

MAX_HEADS = 12
SMALL = 200  # pixels, the width of an image beside the maps of its heads


def pca(
    images: np.ndarray,
    features: np.ndarray,
    path: str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
) -> Path:
    """Draws the first three principal components of patch features as red, green and blue beside each image.

    The basis and the colour range are shared by all images, so that equal colours mean equal features.

    Args:
      images: `(images, height, width, 3)` uint8.
      features: `(images, grid_height, grid_width, dim)`.
      path: the PNG to write.
      names: one title per image.

    Raises:
      ValueError: when shapes disagree or a feature is not finite.
    """
    images, features = _checked("pca", images, features)
    components = shared_components(list(features))
    height, width = images.shape[1:3]
    painted = [components.paint(grid, height=height, width=width) for grid in features]
    pairs = zip(images, painted, strict=True)
    named = list(zip(names or [""] * len(images), pairs, strict=True))
    return save(overview(named, title="First three principal components of the patch features"), path)


def attention(
    images: np.ndarray,
    weights: np.ndarray,
    path: str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
) -> Path:
    """Draws one map per head beside each image, and the mean over heads; at most MAX_HEADS heads are shown.

    Args:
      images: `(images, height, width, 3)` uint8.
      weights: attention of the CLS token to the patches, `(images, heads, grid_height, grid_width)`. Every map has its
        own colour range from 0 to its 99.5th percentile: heads differ in how much they look at patches at all.
      path: the PNG to write.
      names: one title per image.

    Raises:
      ValueError: when shapes disagree or a weight is not finite.
    """
    images, weights = _checked("attention", images, weights)
    heads, title = min(weights.shape[1], MAX_HEADS), "Attention of the CLS token in the last block"
    if heads < weights.shape[1]:
        title = f"{title} (first {heads} of {weights.shape[1]} heads)"
    headings = ["mean", *(f"head {head + 1}" for head in range(heads))]
    rows = []
    for index, image in enumerate(images):
        shown = to_width(image, SMALL)
        height, width = shown.shape[:2]
        maps = [weights[index].mean(axis=0), *weights[index, :heads]]
        drawn = [heat(each, high=float(np.percentile(each, 99.5)), height=height, width=width) for each in maps]
        captions = headings if index == 0 else [""] * len(drawn)
        rows.append([(names[index] if names else "", shown), *zip(captions, drawn, strict=True)])
    return save(page(rows, title=title), path)


def cosine_maps(
    images: np.ndarray,
    features: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
) -> Path:
    """Draws the cosine of the middle patch to all patches of its image, for one or more networks side by side.

    Args:
      images: `(images, height, width, 3)` uint8.
      features: by network name, patch features `(images, grid_height, grid_width, dim)`; grids may differ.
      path: the PNG to write.
      names: one title per image.

    Raises:
      ValueError: when shapes disagree or a feature is not finite.
    """
    maps = {}
    for network, array in features.items():
        images, array = _checked(f"cosine_maps ({network})", images, array)
        maps[network] = [_cosines(grid) for grid in array]
    low = min(0.0, float(np.percentile(np.concatenate([m.ravel() for group in maps.values() for m in group]), 2)))
    each = 2 if len(images) > 4 else 1  # images in a row
    panels = []
    for index, image in enumerate(images):
        shown = to_width(image, PANEL)
        height, width = shown.shape[:2]
        first = next(iter(maps.values()))[index]
        panels.append((names[index] if names else "", _marked(shown, first.shape)))
        for network, group in maps.items():
            drawn = heat(group[index], low=low, high=1.0, height=height, width=width, colors="viridis")
            panels.append((network if index < each else "", _marked(drawn, group[index].shape)))
    rows = in_rows(panels, each * (1 + len(maps)))
    title = "Cosine of one patch to all others"
    return save(page([*rows, [(f"cosine {low:.2f} to 1", scale("viridis"))]], title=title), path)


def _marked(picture: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Outlines the middle patch of a grid."""
    (row, column), height, width = _middle(grid), picture.shape[0] / grid[0], picture.shape[1] / grid[1]
    box = column * width, row * height, (column + 1) * width, (row + 1) * height
    return outline(picture, box, "white")


def _middle(grid: tuple[int, ...]) -> tuple[int, int]:
    """Returns the row and column of the patch that covers the middle of the image."""
    return grid[0] // 2, grid[1] // 2


def _cosines(grid: np.ndarray) -> np.ndarray:
    """Returns the cosines `(grid_height, grid_width)` of the middle patch to all patches of one image."""
    unit = grid / np.maximum(np.linalg.norm(grid, axis=-1, keepdims=True), 1e-12)
    return unit @ unit[_middle(grid.shape)]


def _checked(what: str, images: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and float64 features, or raises ValueError for what cannot be drawn."""
    images, features = np.asarray(images), np.asarray(features, np.float64)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"{what}: images must be (n, height, width, 3) uint8, got {images.shape} {images.dtype}")
    if features.ndim != 4 or len(features) != len(images):
        raise ValueError(f"{what}: features {features.shape} must be 4-D, one entry for each of {len(images)} images")
    check_finite(features, f"{what}: features")
    return images, features
