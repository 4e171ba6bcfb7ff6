"""Errors of predicted depth: metres, and relative depth known up to a scale (and shift) per image."""

import numpy as np

METRICS = ("rmse", "abs_rel", "delta1", "log10", "silog")

# Where NYU Depth V2 frames of 480 x 640 are valid: Eigen et al., arXiv 1406.2283; rows and columns.
EIGEN_CROP = ((45, 471), (41, 601))
NYU_SIZE = (480, 640)


def depth_errors(truth: np.ndarray, predicted: np.ndarray, *, valid: np.ndarray | None = None) -> dict[str, float]:
    """Compares one image's depth maps over the pixels whose depth is known.

    Args:
      truth: `(height, width)`, 0 or less where unknown.
      predicted: `(height, width)`, positive, in the same unit.
      valid: `(height, width)` bool, further restricts the pixels; see `eigen_crop`.

    Returns:
      "rmse" in the unit of the depth; "abs_rel", the mean of |d - t| / t; "delta1", the share of pixels with
      max(d / t, t / d) < 1.25; "log10", the mean of |log10 d - log10 t|; "silog", the standard deviation of
      log d - log t (the root of Eigen et al., arXiv 1406.2283, equation 1).

    Raises:
      ValueError: when shapes differ, a prediction is not positive, or no pixel's depth is known.
    """
    known = _known(truth, predicted, valid)
    true, found = truth[known].astype(np.float64), predicted[known].astype(np.float64)
    if not (np.isfinite(found).all() and found.min() > 0):
        raise ValueError("depth: a predicted depth is not positive; clip predictions to the range of the depth")
    ratio = np.maximum(found / true, true / found)
    logs = np.log(found) - np.log(true)
    return {
        "rmse": float(np.sqrt(np.mean((found - true) ** 2))),
        "abs_rel": float(np.mean(np.abs(found - true) / true)),
        "delta1": float(np.mean(ratio < 1.25)),
        "log10": float(np.mean(np.abs(logs)) / np.log(10)),
        "silog": float(np.std(logs)),
    }


def align(
    truth: np.ndarray, predicted: np.ndarray, *, shift: bool, valid: np.ndarray | None = None, floor: float = 1e-3
) -> np.ndarray:
    """Scales (and shifts) a predicted depth map so that its squared error to the truth is smallest.

    The protocol for relative depth: where each image's scale is unknown, it is fitted before errors are taken
    (MiDaS, arXiv 1907.01341, section 5).

    Args:
      truth, predicted, valid: see `depth_errors`.
      shift: fits an offset too.
      floor: results are not below it, since depths are positive.

    Returns:
      float64 `(height, width)`.
    """
    known = _known(truth, predicted, valid)
    true, found = truth[known].astype(np.float64), predicted[known].astype(np.float64)
    if shift:
        columns = np.stack([found, np.ones_like(found)], axis=1)
        scale, offset = np.linalg.lstsq(columns, true, rcond=None)[0]
    else:
        scale, offset = found @ true / max(found @ found, 1e-12), 0.0
    return np.maximum(predicted.astype(np.float64) * scale + offset, floor)


def eigen_crop(size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels of an NYU frame that count, bool `(height, width)`, scaled to a frame of `size`."""
    (top, bottom), (left, right) = EIGEN_CROP
    rows, columns = size[0] / NYU_SIZE[0], size[1] / NYU_SIZE[1]
    inside = np.zeros(size, bool)
    inside[round(top * rows) : round(bottom * rows), round(left * columns) : round(right * columns)] = True
    return inside


def mean_errors(errors: list[dict[str, float]]) -> dict[str, float]:
    """Averages the errors of images, each image counting alike.

    Raises:
      ValueError: when there is no image.
    """
    if not errors:
        raise ValueError("depth: no image was compared")
    return {name: float(np.mean([error[name] for error in errors])) for name in errors[0]}


def _known(truth: np.ndarray, predicted: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    if truth.shape != predicted.shape:
        raise ValueError(f"depth: predicted map {predicted.shape} for a truth {truth.shape}; resize it first")
    known = truth > 0 if valid is None else (truth > 0) & valid
    if not known.any():
        raise ValueError("depth: no pixel of a depth map is known (all are 0); leave the image out")
    return known
