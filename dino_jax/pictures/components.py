"""Principal components of patch features as colours, with one basis for a whole set of images (DINOv2, section 7.5)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dino_jax.evals.features import check_finite
from dino_jax.pictures.colors import paint_components

PERCENTILES = (1.0, 99.0)  # of a component become 0 and 1
# A foreground of fewer patches than this, or of nearly all of them, says that there is no background to take away.
LEAST_PATCHES = 12
MOST_SHARE = 0.95
MOST_PATCHES = 2**15  # sampled for the components, evenly spaced


@dataclasses.dataclass(frozen=True)
class Components:
    """A basis of three directions, and what is foreground.

    Attributes:
      mean, basis: a feature's colours are `(feature - mean) @ basis`, `(dim,)` and `(dim, 3)`.
      low, high: of each colour, `(3,)`; they become 0 and 1.
      axis, threshold: a patch whose `feature @ axis` exceeds the threshold is foreground; None where all are.
    """

    mean: np.ndarray
    basis: np.ndarray
    low: np.ndarray
    high: np.ndarray
    axis: np.ndarray | None = None
    threshold: float = 0.0

    def colors(self, grid: np.ndarray) -> np.ndarray:
        """Maps features `(height, width, dim)` to colours in [0, 1], float32 `(height, width, 3)`."""
        scores = (np.asarray(grid, np.float64) - self.mean) @ self.basis
        return np.clip((scores - self.low) / np.maximum(self.high - self.low, 1e-12), 0, 1).astype(np.float32)

    def foreground(self, grid: np.ndarray) -> np.ndarray:
        """Tells which patches of `(height, width, dim)` are foreground, bool `(height, width)`."""
        if self.axis is None:
            return np.ones(grid.shape[:2], bool)
        return np.asarray(grid, np.float64) @ self.axis > self.threshold

    def paint(self, grid: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Draws features `(rows, columns, dim)` as colours on a dark background, uint8 `(height, width, 3)`."""
        return paint_components(self.colors(grid), self.foreground(grid), height=height, width=width)


def shared_components(grids: Sequence[np.ndarray], *, foreground: bool = False) -> Components:
    """Finds the three leading principal components of all patches of a set of images.

    With `foreground`, as in DINOv2's figure 1: the first component of all patches is cut at its mean, and the colours
    are the components of the patches on one side of it. That side is the one that reaches the images' borders less.
    Signs are fixed by making the largest loading of every direction positive, so that pictures of two runs compare.

    Args:
      grids: patch features `(height, width, dim)` of each image; heights and widths may differ.

    Raises:
      ValueError: if there is no image, widths of features differ, or one is not finite.
    """
    if not grids or len({grid.shape[-1] for grid in grids}) != 1:
        raise ValueError("components: there must be at least one image, and all features must have one width")
    for grid in grids:
        check_finite(grid, "components: features")
    every = -(-sum(grid.shape[0] * grid.shape[1] for grid in grids) // MOST_PATCHES)
    patches = np.concatenate([grid.reshape(-1, grid.shape[-1])[::every] for grid in grids]).astype(np.float64)
    if not foreground:
        return _of(patches)
    mean = patches.mean(0)
    axis = _directions(patches - mean, 1)[:, 0]
    border = np.concatenate([_border(*grid.shape[:2]).ravel()[::every] for grid in grids])
    positive = (patches - mean) @ axis > 0
    if (~border).any() and positive[border].mean() > positive[~border].mean():
        axis = -axis
    inside = (patches - mean) @ axis > 0
    if inside.sum() < LEAST_PATCHES or inside.mean() > MOST_SHARE:
        return _of(patches)
    return dataclasses.replace(_of(patches[inside]), axis=axis, threshold=float(mean @ axis))


def _of(patches: np.ndarray) -> Components:
    mean = patches.mean(0)
    basis = _directions(patches - mean, 3)
    low, high = np.percentile((patches - mean) @ basis, PERCENTILES, axis=0)
    return Components(mean, basis, low, high)


def _directions(centred: np.ndarray, count: int) -> np.ndarray:
    """Returns the leading directions `(dim, count)`, zeros where there are fewer, the largest loading positive."""
    # Of few patches, the small side of the singular value decomposition is theirs.
    _, _, rows = np.linalg.svd(centred if len(centred) < centred.shape[1] else _square_root(centred))
    found = rows[:count].T
    signs = np.sign(found[np.abs(found).argmax(0), np.arange(found.shape[1])])
    return np.pad(found * np.where(signs, signs, 1), ((0, 0), (0, count - found.shape[1])))


def _square_root(centred: np.ndarray) -> np.ndarray:
    """Returns a square matrix with the same right singular vectors."""
    return np.asarray(np.linalg.qr(centred, mode="r"))


def _border(height: int, width: int) -> np.ndarray:
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    return border
