"""Finds the main object of an image without labels: TokenCut, arXiv 2202.11539, section 3."""

import dataclasses

import numpy as np
from scipy import linalg, ndimage

from dino_jax.evals.features import check_finite

THRESHOLD = 0.2
WEAK = 1e-5  # weight of the edges below the threshold: the graph stays connected

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The object of one image.

    Attributes:
      mask: bool `(rows, columns)`: its patches, connected.
      foreground: bool `(rows, columns)`: its side of the cut.
      eigenvector: float64 `(rows, columns)`, positive on the object's side of its mean.
    """

    mask: np.ndarray
    foreground: np.ndarray
    eigenvector: np.ndarray

    def box(self, size: tuple[int, int]) -> Box:
        """Returns the box around `mask` in an image of height and width `size`."""
        left, top, right, bottom = box_of(self.mask)
        down, across = size[0] / self.mask.shape[0], size[1] / self.mask.shape[1]
        return left * across, top * down, right * across, bottom * down


def token_cut(patches: np.ndarray, *, threshold: float = THRESHOLD) -> Found:
    """Cuts the graph of an image's patches in two and returns the side and the component of the object.

    Patches are joined with weight 1 where their cosine exceeds `threshold`, else 1e-5. The second eigenvector of the
    normalised cut is split at its mean. The patch with the largest absolute entry belongs to the object; the object is
    the connected part of its side that holds it.

    Args:
      patches: `(rows, columns, dim)`.
      threshold: of the cosine, above -1 and below 1.

    Raises:
      ValueError: for fewer than two patches, a feature that is not finite, or another threshold.
    """
    if not -1 < threshold < 1:
        raise ValueError(f"discovery: the threshold {threshold:g} must lie between -1 and 1: it is a cosine")
    rows, columns, dim = patches.shape
    if rows * columns < 2:
        raise ValueError(f"discovery: a grid of {rows} x {columns} patches cannot be cut; enlarge the image")
    check_finite(patches, "discovery: features")
    unit = patches.reshape(-1, dim).astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    vector = second_eigenvector(np.where(unit @ unit.T > threshold, 1.0, WEAK))
    seed = int(np.argmax(abs(vector)))
    if vector[seed] < vector.mean():
        vector = -vector
    foreground = (vector > vector.mean()).reshape(rows, columns)
    foreground.flat[seed] = True  # a constant vector has nothing above its mean
    parts, _ = ndimage.label(foreground)
    return Found(parts == parts.flat[seed], foreground, vector.reshape(rows, columns))


def second_eigenvector(weights: np.ndarray) -> np.ndarray:
    """Solves (D - W) y = lambda D y for the second smallest lambda: Shi and Malik, PAMI 2000, equation 6.

    Args:
      weights: W, symmetric, positive, `(n, n)`; D is the diagonal of its row sums.

    Returns:
      y, float64 `(n,)`, of y^T D y = 1; its sign is arbitrary.
    """
    root = np.sqrt(weights.sum(axis=1))
    # With z = D^(1/2) y the problem is an ordinary symmetric one.
    normalised = np.eye(len(root)) - weights / np.outer(root, root)
    _, vectors = linalg.eigh(normalised, subset_by_index=(1, 1), overwrite_a=True, check_finite=False)
    return vectors[:, 0] / root


def box_of(mask: np.ndarray) -> Box:
    """Returns the box around the true entries of a bool mask `(height, width)`.

    Raises:
      ValueError: for an empty mask.
    """
    if not mask.any():
        raise ValueError("discovery: an empty mask has no box")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def box_iou(first: Box, second: Box) -> float:
    """Returns the intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared) if areas > shared else 0.0


def corloc(found: list[Box], truth: list[list[Box]]) -> float:
    """Returns the share of images whose box overlaps one of the true boxes by an IoU of one half or more.

    Raises:
      ValueError: when the lists differ in length, or an image has no true box.
    """
    if len(found) != len(truth) or not found:
        raise ValueError(f"discovery: {len(found)} boxes for {len(truth)} images; one for each of one or more images")
    empty = [index for index, boxes in enumerate(truth) if not boxes]
    if empty:
        raise ValueError(f"discovery: image {empty[0]} has no true box; leave it out")
    hits = [max(box_iou(box, true) for true in boxes) >= 0.5 for box, boxes in zip(found, truth, strict=True)]
    return float(np.mean(hits))


def mask_iou(truth: np.ndarray, found: np.ndarray) -> float:
    """Returns the IoU of a patch mask `(rows, columns)`, enlarged to the pixels, with a bool mask `(height, width)`."""
    rows, columns = (
        (2 * np.arange(pixels) + 1) * cells // (2 * pixels)
        for pixels, cells in zip(truth.shape, found.shape, strict=True)
    )
    enlarged = found[rows][:, columns]
    union = (truth | enlarged).sum()
    return float((truth & enlarged).sum() / union) if union else 1.0
