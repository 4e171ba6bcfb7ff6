"""Resizes maps of patch features or positions as PyTorch does, as two small matrix products."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Method = Literal["bicubic", "bilinear"]


def resize_patches(
    patches: jax.Array,
    from_grid: tuple[int, int],
    to_grid: tuple[int, int],
    *,
    antialias: bool,
    method: Method = "bicubic",
) -> jax.Array:
    """Interpolates a map of patch features to another grid (torch's `interpolate`, half-pixel centres).

    Args:
      patches: `(batch, from_height * from_width, dim)` in row-major order, any float dtype.
      from_grid: `(height, width)` of the patches.
      to_grid: `(height, width)` wanted.
      antialias: widens the kernel when shrinking, so that all patches contribute.
      method: "bicubic" or "bilinear".

    Returns:
      float32 `(batch, to_height * to_width, dim)`; the patches as they are when the grids are equal.

    Raises:
      ValueError: when the patches are not those of `from_grid`, or the method is unknown.
    """
    batch, count, dim = patches.shape
    if count != from_grid[0] * from_grid[1]:
        raise ValueError(f"resize_patches: {count} patches are not a grid of {from_grid}; give their own grid.")
    patches = patches.astype(jnp.float32)
    if tuple(from_grid) == tuple(to_grid):
        return patches
    rows, columns = (
        resize_matrix(old, new, antialias=antialias, method=method) for old, new in zip(from_grid, to_grid, strict=True)
    )
    return apply_matrices(patches.reshape(batch, *from_grid, dim), rows, columns).reshape(batch, -1, dim)


def apply_matrices(grid: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Maps `(batch, height, width, dim)` by `(to_height, height)` along rows and `(to_width, width)` along columns."""
    grid = jnp.einsum("ih,bhwd->biwd", rows, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("jw,biwd->bijd", columns, grid, precision=jax.lax.Precision.HIGHEST)


def resize_matrix(
    from_size: int, to_size: int, *, antialias: bool, method: Method, stride: float | None = None
) -> np.ndarray:
    """Builds the interpolation of one axis: float32 `(to_size, from_size)`, rows sum to 1.

    Args:
      antialias, method: see `resize_patches`.
      stride: inputs from one output to the next; None takes from_size / to_size, which covers the axis.
    """
    if method not in ("bicubic", "bilinear"):
        raise ValueError(f"resize_matrix: method is {method!r}; choose 'bicubic' or 'bilinear'.")
    build = _antialiased if antialias else _sampled
    stride = from_size / to_size if stride is None else stride
    return build(from_size, to_size, stride, method=method).astype(np.float32)


def _antialiased(from_size: int, to_size: int, stride: float, *, method: Method) -> np.ndarray:
    """Stretches the kernel by the shrink factor; taps outside are dropped and the rest renormalised."""
    centers = (np.arange(to_size)[:, None] + 0.5) * stride
    distance = (np.arange(from_size)[None, :] + 0.5 - centers) / max(stride, 1.0)
    weights = _keys(distance, a=-0.5) if method == "bicubic" else _triangle(distance)
    return weights / weights.sum(axis=1, keepdims=True)


def _sampled(from_size: int, to_size: int, stride: float, *, method: Method) -> np.ndarray:
    """Interpolates between the nearest taps (4 or 2); taps outside take the value at the border."""
    centers = (np.arange(to_size) + 0.5) * stride - 0.5
    first = np.floor(centers).astype(int)
    matrix = np.zeros((to_size, from_size))
    for offset in range(-1, 3) if method == "bicubic" else range(2):
        distance = first + offset - centers
        weights = _keys(distance, a=-0.75) if method == "bicubic" else _triangle(distance)
        np.add.at(matrix, (np.arange(to_size), np.clip(first + offset, 0, from_size - 1)), weights)
    return matrix


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _keys(x: np.ndarray, *, a: float) -> np.ndarray:
    """Evaluates the cubic convolution kernel (Keys 1981); torch takes a = -0.75, and -0.5 when antialiasing."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
