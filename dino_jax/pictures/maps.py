"""Draws what a network sees: principal components, attention and cosine maps of patch features."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dino_jax.pictures.components import shared_components
from dino_jax.pictures.sheet import Sheet, middle

MAX_HEADS = 12


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
    title = "First three principal components of the patch features"
    sheet = Sheet(images, panels=2, blocks=1 if len(images) == 1 else 2, title=title, names=names)
    for index, image in enumerate(images):
        sheet.image(index, 0, image)
        sheet.image(index, 1, components.colors(features[index]))
    return sheet.save(path)


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
    columns = ["image", "mean", *(f"head {head + 1}" for head in range(heads))]
    sheet = Sheet(images, panels=len(columns), blocks=1, title=title, names=names, columns=columns, panel=1.35)
    for index, image in enumerate(images):
        sheet.image(index, 0, image)
        for panel, weight in enumerate([weights[index].mean(axis=0), *weights[index, :heads]], start=1):
            sheet.map(index, panel, weight, low=0.0, high=float(np.percentile(weight, 99.5)), colors="inferno")
    return sheet.save(path)


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
    blocks, title = 2 if len(images) > 4 else 1, "Cosine of one patch to all others"
    columns = ["image", *maps]
    sheet = Sheet(images, panels=len(columns), blocks=blocks, title=title, names=names, columns=columns, colorbar=True)
    low = min(0.0, float(np.percentile(np.concatenate([m.ravel() for group in maps.values() for m in group]), 2)))
    for index, image in enumerate(images):
        grid = next(iter(maps.values()))[index].shape
        sheet.mark(sheet.image(index, 0, image), image.shape, grid)
        for panel, group in enumerate(maps.values(), start=1):
            axes = sheet.map(index, panel, group[index], low=low, high=1.0, colors="viridis")
            sheet.mark(axes, image.shape, group[index].shape)
    sheet.bar(low, 1.0, "viridis")
    return sheet.save(path)


def _cosines(grid: np.ndarray) -> np.ndarray:
    """Returns the cosines `(grid_height, grid_width)` of the middle patch to all patches of one image."""
    unit = grid / np.maximum(np.linalg.norm(grid, axis=-1, keepdims=True), 1e-12)
    return unit @ unit[middle(grid.shape)]


def _checked(what: str, images: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and float64 features, or raises ValueError for what cannot be drawn."""
    images, features = np.asarray(images), np.asarray(features, np.float64)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"{what}: images must be (n, height, width, 3) uint8, got {images.shape} {images.dtype}")
    if features.ndim != 4 or len(features) != len(images):
        raise ValueError(f"{what}: features {features.shape} must be 4-D, one entry for each of {len(images)} images")
    if not np.isfinite(features).all():
        raise ValueError(f"{what}: features are not all finite; check the model that made them")
    return images, features
