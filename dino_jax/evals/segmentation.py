"""Scores class maps of images, and judges patch features by a linear map to classes in closed form.

The published protocol, a head trained on random crops, is in `patch_head`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dino_jax.evals.features import check_finite

IGNORE = 255
RIDGE = 1e-3
BLOCK = 16  # images on the device at a time
# Power of the classes' frequencies that serves as their prior. 1 suits the share of right pixels and 0 the mean over
# classes; between them, neither loses much.
PRIOR = 0.5
NEVER = -1e9  # log prior of classes without a training pixel


def confusion(truth: np.ndarray, predicted: np.ndarray, *, classes: int) -> np.ndarray:
    """Counts the pixels of every (true class, predicted class) pair.

    Args:
      truth: integers of any shape, 0 to classes - 1 or 255, which is ignored.
      predicted: integers of the same shape, 0 to classes - 1.

    Returns:
      int64 `(classes, classes)`; ignored pixels are not counted. Sums over images add up.

    Raises:
      ValueError: when shapes differ or a label is out of range.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"segmentation: predicted map {predicted.shape} for a mask {truth.shape}; resize it first")
    valid = truth != IGNORE
    truth, predicted = truth[valid].astype(np.int64), predicted[valid].astype(np.int64)
    _check_labels("mask", truth, classes=classes)
    _check_labels("prediction", predicted, classes=classes)
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_ious(counts: np.ndarray) -> np.ndarray:
    """Returns each class's intersection over union `(classes,)`, NaN for a class in neither truth nor prediction.

    Args:
      counts: of `confusion`, over the whole data set (not a mean over images).
    """
    hits = np.diag(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def mean_iou(counts: np.ndarray) -> float:
    """Returns the mean of `class_ious` over the classes that occur in truth or prediction.

    Raises:
      ValueError: when nothing was counted.
    """
    if not counts.sum():
        raise ValueError("segmentation: every pixel of the masks is ignored; check the masks' labels")
    return float(np.nanmean(class_ious(counts)))


def pixel_accuracy(counts: np.ndarray) -> float:
    """Returns the share of counted pixels whose class was right."""
    return float(np.trace(counts) / counts.sum())


def quick_miou(
    train_patches: np.ndarray,
    train_masks: np.ndarray,
    test_patches: np.ndarray,
    test_masks: np.ndarray,
    *,
    classes: int,
) -> float:
    """Scores patch features by a linear map to classes in closed form: a dense score that costs seconds.

    A linear discriminant is fitted to the patches; its maps are upsampled bilinearly to the masks, and the largest
    class wins. See `linear_patch_probe` and `predict_masks`.

    Args:
      train_patches: `(images, grid_height, grid_width, dim)`, any float dtype.
      train_masks: `(images, height, width)` integers, 0 to classes - 1 or 255, which is ignored.
      test_patches: as `train_patches`, the grid may differ.
      test_masks: as `train_masks`, the size may differ.
      classes: number of classes.

    Returns:
      Mean intersection over union over the whole test set, 0 to 1.

    Raises:
      ValueError: when shapes disagree, a label is out of range, a feature is not finite, or no pixel is labelled.
    """
    _check_maps("test", test_patches, test_masks)
    weights, bias = linear_patch_probe(train_patches, train_masks, classes=classes)
    if test_patches.shape[-1] != len(weights):
        raise ValueError(f"segmentation: train has {len(weights)} dimensions, test {test_patches.shape[-1]}")
    counts = np.zeros((classes, classes), np.int64)
    for start in range(0, len(test_masks), BLOCK):
        part = slice(start, start + BLOCK)
        predicted = predict_masks(test_patches[part], weights, bias, size=test_masks.shape[1:], pad_to=BLOCK)
        counts += confusion(test_masks[part], predicted, classes=classes)
    return mean_iou(counts)


def linear_patch_probe(
    patches: np.ndarray,
    masks: np.ndarray,
    *,
    classes: int,
    ridge: float = RIDGE,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits a linear discriminant from patch features to classes, in closed form (Fisher's, with a ridge).

    A patch counts for each class by the share of its pixels. Unlike a least-squares fit of the shares, in which classes
    that lie between others are never the largest, it gives rare classes their place.

    Args:
      patches, masks, classes: see `quick_miou`.
      ridge: added to the covariance within classes, as a share of the features' variance.

    Returns:
      Weights `(dim, classes)` and bias `(classes,)`, float32, to be applied to the features as they came. Classes
      without a training pixel are never the largest.

    Raises:
      ValueError: as `quick_miou`.
    """
    _check_maps("train", patches, masks)
    dim = patches.shape[-1]
    second, cross = np.zeros((dim, dim)), np.zeros((dim, classes))
    feature_sum, share_sum = np.zeros(dim), np.zeros(classes)
    center = np.asarray(patches[:BLOCK], np.float32).reshape(-1, dim).mean(axis=0)  # keeps float32 sums accurate
    for start in range(0, len(masks), BLOCK):
        shares, weights = class_shares(masks[start : start + BLOCK], patches.shape[1:3], classes=classes)
        features = np.asarray(patches[start : start + BLOCK], np.float32)
        sums = _moments(_pad(features - center, BLOCK), _pad(shares, BLOCK), _pad(weights, BLOCK))
        for total, part in zip((second, cross, feature_sum, share_sum), sums, strict=True):
            total += np.asarray(part, np.float64)
    if not share_sum.any():
        raise ValueError("segmentation: every pixel of the training masks is ignored; check the masks' labels")
    frequencies, mean = share_sum / share_sum.sum(), feature_sum / share_sum.sum()
    means = np.where(share_sum > 0, cross / np.maximum(share_sum, 1e-12), mean[:, None]) - mean[:, None]
    covariance = second / share_sum.sum() - np.outer(mean, mean)
    within = covariance - (means * frequencies) @ means.T
    # A feature that varies by no more than float32 rounds is constant.
    scale = 1 / np.sqrt(np.maximum(np.diag(covariance), 1e-10 * max(float(np.max((mean + center) ** 2)), 1e-12)))
    solved = np.linalg.solve(within * np.outer(scale, scale) + ridge * np.eye(dim), scale[:, None] * means)
    kernel = scale[:, None] * solved
    prior = np.where(share_sum > 0, PRIOR * np.log(np.maximum(frequencies, 1e-12)), NEVER)
    bias = prior - 0.5 * (means * kernel).sum(axis=0) - (mean + center) @ kernel
    return kernel.astype(np.float32), bias.astype(np.float32)


def class_shares(masks: np.ndarray, grid: tuple[int, int], *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages masks over the cells of a grid.

    Args:
      masks: `(images, height, width)` integers, 0 to classes - 1 or 255, which is ignored.
      grid: rows and columns of the patches; a pixel belongs to the patch that covers its centre.

    Returns:
      The share of each class among the labelled pixels of a cell, `(images, rows, columns, classes)`, 0 where none is
      labelled, and the labelled share of the cell `(images, rows, columns)`; float32.

    Raises:
      ValueError: for a label out of range.
    """
    images, height, width = masks.shape
    rows = (2 * np.arange(height) + 1) * grid[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * grid[1] // (2 * width)
    cells = (np.arange(images)[:, None, None] * grid[0] + rows[:, None]) * grid[1] + columns
    valid = masks != IGNORE
    labels = masks[valid].astype(np.int64)
    _check_labels("mask", labels, classes=classes)
    shape = (images, *grid)
    size = int(np.prod(shape))
    counts = np.bincount(cells[valid] * classes + labels, minlength=size * classes).reshape(*shape, classes)
    labelled = counts.sum(axis=-1)
    pixels = np.bincount(cells.ravel(), minlength=size).reshape(shape)
    shares = counts / np.maximum(labelled, 1)[..., None]
    return shares.astype(np.float32), (labelled / np.maximum(pixels, 1)).astype(np.float32)


def predict_masks(
    patches: np.ndarray, weights: np.ndarray, bias: np.ndarray, *, size: tuple[int, int], pad_to: int = 0
) -> np.ndarray:
    """Applies a linear map to patches and returns the largest class of the map upsampled bilinearly.

    Args:
      patches: `(images, grid_height, grid_width, dim)`.
      weights, bias: `(dim, classes)` and `(classes,)`.
      size: height and width of the result.
      pad_to: compiles for this many images, however many there are.

    Returns:
      int32 `(images, height, width)`.
    """
    features = _pad(np.asarray(patches, np.float32), max(pad_to, len(patches)))
    return np.asarray(_upsampled_argmax(features, weights, bias, size=tuple(size)))[: len(patches)]


@functools.partial(jax.jit, static_argnames="size")
def _upsampled_argmax(patches: jax.Array, weights: jax.Array, bias: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    maps = jnp.matmul(patches, weights, precision=jax.lax.Precision.HIGHEST) + bias
    return jnp.argmax(upsample(maps, size), axis=-1)


def upsample(maps: jax.Array, size: Sequence[int]) -> jax.Array:
    """Resizes maps `(images, rows, columns, channels)` bilinearly, half-pixel centres, without antialiasing."""
    shape = (maps.shape[0], *size, maps.shape[-1])
    return jax.image.resize(maps, shape, "bilinear", antialias=False, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _moments(patches: jax.Array, shares: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the weighted sums over patches of x x^T, x y^T, x and y."""
    features, shares = patches.reshape(-1, patches.shape[-1]), shares.reshape(-1, shares.shape[-1])
    weighted = features * weights.reshape(-1, 1)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return (
        product(weighted.T, features),
        product(weighted.T, shares),
        weighted.sum(axis=0),
        (shares * weights.reshape(-1, 1)).sum(axis=0),
    )


def _pad(array: np.ndarray, count: int) -> np.ndarray:
    """Appends zeros so that every block has one shape; padded patches have weight 0."""
    return np.pad(array, [(0, count - len(array)), *[(0, 0)] * (array.ndim - 1)])


def _check_labels(what: str, labels: np.ndarray, *, classes: int) -> None:
    """Raises ValueError for a label out of range."""
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        wrong = labels.max() if labels.max() >= classes else labels.min()
        raise ValueError(
            f"segmentation: a {what} holds label {wrong}, but there are {classes} classes (0 to {classes - 1}; "
            f"{IGNORE} is ignored): give the right number of classes"
        )


def _check_maps(what: str, patches: np.ndarray, masks: np.ndarray) -> None:
    """Raises ValueError for input that would give a wrong score."""
    if patches.ndim != 4 or masks.ndim != 3 or len(patches) != len(masks) or not len(masks):
        raise ValueError(
            f"segmentation: {what} patches {patches.shape} and masks {masks.shape} must be (images, rows, columns, dim)"
            " and (images, height, width), of one or more images"
        )
    check_finite(patches, f"segmentation: {what} features")
