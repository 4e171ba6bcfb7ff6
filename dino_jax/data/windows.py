"""Cuts images into crops for training and overlapping windows for testing, and puts predictions together again."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dino_jax.data.fit import resize


def nearest(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes a map of labels or depths `(rows, columns)` to `(height, width)`, taking the nearest pixel."""
    if labels.shape == tuple(size):
        return labels
    return np.asarray(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def multiple(size: float, of: int) -> int:
    """Rounds a size to the nearest multiple of the patch size, at least one patch."""
    return max(of, round(size / of) * of)


def shorter_side(size: Sequence[int], side: int) -> tuple[int, int]:
    """Returns the size of the same aspect whose shorter side is `side`; unchanged for 0."""
    scale = side / min(size) if side else 1.0
    return round(size[0] * scale), round(size[1] * scale)


def patch_multiple(size: Sequence[int], side: int, patch: int) -> tuple[int, int]:
    """Returns the `shorter_side` size, both sides rounded to whole patches."""
    height, width = shorter_side(size, side)
    return multiple(height, patch), multiple(width, patch)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns where windows begin along one axis: every `stride`, the last one moved back to end at the border."""
    if window >= length:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(index * stride, length - window) for index in range(count)]


def cut_windows(
    image: np.ndarray, window: tuple[int, int], stride: tuple[int, int]
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Cuts an image into overlapping windows.

    Args:
      image: `(height, width, channels)`; one smaller than the window is filled up at the bottom and right by its
        border.
      window: height and width.
      stride: from one window to the next, down and across.

    Returns:
      `(windows, *window, channels)` and the `(top, left)` of each.
    """
    below, right = (max(0, side - length) for side, length in zip(window, image.shape[:2], strict=True))
    image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    rows, columns = (window_starts(*axis) for axis in zip(image.shape[:2], window, stride, strict=True))
    places = [(top, left) for top in rows for left in columns]
    return np.stack([image[top : top + window[0], left : left + window[1]] for top, left in places]), places


def merge(parts: np.ndarray, places: list[tuple[int, int]], size: tuple[int, int]) -> np.ndarray:
    """Averages overlapping windows `(windows, height, width, channels)` into a map of `size`; padding is cut off."""
    height, width = parts.shape[1:3]
    bottom, right = max(top for top, _ in places) + height, max(left for _, left in places) + width
    total = np.zeros((bottom, right, parts.shape[-1]), np.float32)
    count = np.zeros((bottom, right, 1), np.float32)
    for part, (top, left) in zip(parts, places, strict=True):
        total[top : top + height, left : left + width] += part
        count[top : top + height, left : left + width] += 1
    return (total / count)[: size[0], : size[1]]


def random_crop(
    image: np.ndarray,
    target: np.ndarray,
    crop: tuple[int, int],
    *,
    side: int,
    scale: tuple[float, float],
    fill: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image and its labels (or depths) alike by a random factor, flips half of them, and cuts a crop.

    Args:
      image: uint8 `(height, width, 3)`.
      target: `(rows, columns)`, a map of labels or depths of the same field of view.
      crop: height and width of the result.
      side: shorter side before the random factor; 0 leaves the image's own.
      scale: range of the factor; (1, 1) has none.
      fill: target where the crop reaches beyond the image.
      random: draws factor, flip and place.

    Returns:
      `(*crop, 3)` uint8 and `(*crop,)` in the target's dtype.
    """
    factor = random.uniform(*scale)
    size = [max(1, round(length * factor)) for length in shorter_side(image.shape[:2], side)]
    image, target = resize(image, size), nearest(target, size)
    if random.random() < 0.5:
        image, target = image[:, ::-1], target[:, ::-1]
    padding = [(0, max(0, wanted - length)) for wanted, length in zip(crop, size, strict=True)]
    image = np.pad(image, [*padding, (0, 0)])
    target = np.pad(target, padding, constant_values=fill)
    top, left = (random.integers(0, length - wanted + 1) for length, wanted in zip(target.shape, crop, strict=True))
    part = np.s_[top : top + crop[0], left : left + crop[1]]
    return image[part], target[part]
