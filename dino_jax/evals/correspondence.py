"""Finds in one image the points of another by their patch features: DINOv3, arXiv 2508.10104, section 6.1.3."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from dino_jax.evals.features import unit
from dino_jax.evals.segmentation import upsample

ALPHAS = (0.05, 0.1, 0.2)


def match_points(
    source: np.ndarray, target: np.ndarray, points: np.ndarray, *, finer: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Finds for each point of the source image the most similar place of the target image.

    Features are interpolated bilinearly at the points and on a target grid `finer` times as dense.

    Args:
      source: patch features `(rows, columns, dim)`.
      target: patch features of the other image; the grid may differ.
      points: `(points, 2)`, x and y as shares of width and height in [0, 1].
      finer: target places per patch and axis.

    Returns:
      Places `(points, 2)` in the target, as shares of its width and height, and their cosines `(points,)`.

    Raises:
      ValueError: when a point lies outside, or dimensions differ.
    """
    points = np.asarray(points, np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or points.min() < 0 or points.max() > 1:
        raise ValueError("correspondence: points must be (n, 2) shares of width and height within [0, 1], n >= 1")
    if source.shape[-1] != target.shape[-1]:
        raise ValueError(f"correspondence: {source.shape[-1]} and {target.shape[-1]} dimensions cannot be compared")
    best, cosines = _nearest(jnp.asarray(source, jnp.float32), jnp.asarray(target, jnp.float32), points, finer=finer)
    rows, columns = target.shape[0] * finer, target.shape[1] * finer
    row, column = np.divmod(np.asarray(best), columns)
    return np.stack([(column + 0.5) / columns, (row + 0.5) / rows], axis=1), np.asarray(cosines)


@functools.partial(jax.jit, static_argnames="finer")
def _nearest(source: jax.Array, target: jax.Array, points: jax.Array, *, finer: int) -> tuple[jax.Array, jax.Array]:
    places = upsample(unit(target)[None], (target.shape[0] * finer, target.shape[1] * finer))[0]
    wanted = unit(_sample(unit(source), points))
    cosines = jnp.matmul(wanted, unit(places).reshape(-1, places.shape[-1]).T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(cosines, axis=1), jnp.max(cosines, axis=1)


def _sample(grid: jax.Array, points: jax.Array) -> jax.Array:
    """Interpolates a grid `(rows, columns, dim)` bilinearly at points `(n, 2)` in [0, 1]; outside is the border."""
    rows, columns = points[:, 1] * grid.shape[0] - 0.5, points[:, 0] * grid.shape[1] - 0.5
    interpolate = functools.partial(map_coordinates, coordinates=[rows, columns], order=1, mode="nearest")
    return jax.vmap(interpolate, in_axes=-1, out_axes=-1)(grid)


def mutual_matches(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches patches that are each other's nearest.

    Args:
      source: patch features `(rows, columns, dim)`.
      target: patch features of the other image; the grid may differ.

    Returns:
      The patches' centres `(matches, 2)` in the source and in the target, x and y as shares of width and height, and
      cosines `(matches,)`, the best first.
    """
    first, second = (np.asarray(unit(jnp.asarray(grid, jnp.float32))) for grid in (source, target))
    cosines = first.reshape(-1, first.shape[-1]) @ second.reshape(-1, second.shape[-1]).T
    forward, backward = cosines.argmax(axis=1), cosines.argmax(axis=0)
    kept = np.flatnonzero(backward[forward] == np.arange(len(forward)))
    values = cosines[kept, forward[kept]]
    order = np.argsort(-values, kind="stable")
    kept = kept[order]
    return centers(source.shape[:2])[kept], centers(target.shape[:2])[forward[kept]], values[order]


def centers(grid: tuple[int, int]) -> np.ndarray:
    """Returns the centres of the patches of a grid, `(rows * columns, 2)` x and y as shares of width and height."""
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    return np.stack([(columns + 0.5) / grid[1], (rows + 0.5) / grid[0]], axis=-1).reshape(-1, 2)


def pck(found: np.ndarray, truth: np.ndarray, *, size: float | np.ndarray, alpha: float) -> float:
    """Returns the share of points found within `alpha * size` of the truth (percentage of correct keypoints).

    Args:
      found, truth: `(points, 2)` in pixels.
      size: the longer side of the image or of the object's box, one for all or `(points,)`.
      alpha: tolerance as a share of `size`.

    Raises:
      ValueError: when shapes differ or there is no point.
    """
    if found.shape != truth.shape or not len(found):
        raise ValueError(f"correspondence: {found.shape} points found for {truth.shape}; give one or more of each")
    return float(np.mean(np.linalg.norm(found - truth, axis=1) <= alpha * np.asarray(size)))
