"""Axial rotary position embedding (RoPE) of DINOv3, section 3.2, with its training-time box augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def periods(
    head_dim: int, *, base: float | None = 100.0, min_period: float | None = None, max_period: float | None = None
) -> np.ndarray:
    """Returns the `(head_dim / 4,)` float32 periods, in units of the normalised coordinate.

    Either geometric from 1 with ratio `base ** (2 / (head_dim / 2))`, or, when `base` is None, geometric from
    `min_period` to `max_period` inclusive.

    Raises:
      ValueError: if `head_dim` is not a multiple of 4, or both or neither of the two forms is given.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim = {head_dim} is not a multiple of 4, which axial RoPE needs: change width or heads")
    if (base is None) == (min_period is None or max_period is None):
        raise ValueError("give either rope_base, or both rope_min_period and rope_max_period")
    count = head_dim // 4
    if base is not None:
        return np.power(base, 2 * np.arange(count) / (head_dim // 2)).astype(np.float32)
    assert min_period is not None and max_period is not None
    return np.geomspace(min_period, max_period, count).astype(np.float32)


def coordinates(height: int, width: int, *, normalize: str = "separate") -> np.ndarray:
    """Returns the `(height * width, 2)` float32 centres of the patches, row-major, as (row, column).

    Each axis spans [-1, 1] (`normalize="separate"`), or both are divided by the longer ("max") or the shorter ("min")
    side, which keeps the aspect ratio.
    """
    if normalize not in ("separate", "max", "min"):
        raise ValueError(f"rope_normalize = {normalize!r} is not one of 'separate', 'max', 'min'")
    sides = {
        "separate": (height, width),
        "max": (max(height, width),) * 2,
        "min": (min(height, width),) * 2,
    }[normalize]
    rows, columns = (
        (np.arange(n, dtype=np.float32) + 0.5) / side for n, side in zip((height, width), sides, strict=True)
    )
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return 2.0 * grid.reshape(-1, 2) - 1.0


def augment(
    coords: Array | np.ndarray,
    key: Array,
    *,
    shift: float = 0.0,
    jitter: float = 1.0,
    rescale: float = 1.0,
) -> Array:
    """Moves and stretches the coordinate box `(patches, 2)` at random, in the order shift, jitter, rescale.

    Args:
      shift: adds uniform noise in [-shift, shift] to each axis.
      jitter: multiplies each axis by its own log-uniform factor in [1/jitter, jitter].
      rescale: multiplies both axes by one log-uniform factor in [1/rescale, rescale].
    """
    shift_key, jitter_key, rescale_key = jax.random.split(key, 3)
    return move_box(
        coords,
        offset=_symmetric(shift_key, (2,), shift),
        log_jitter=_symmetric(jitter_key, (2,), np.log(jitter)),
        log_rescale=_symmetric(rescale_key, (1,), np.log(rescale)),
    )


def move_box(coords: Array | np.ndarray, *, offset: Array, log_jitter: Array, log_rescale: Array) -> Array:
    """Adds `offset` `(2,)` to coordinates `(patches, 2)`, then multiplies by exp of the logs `(2,)` and `(1,)`."""
    return (jnp.asarray(coords) + offset) * jnp.exp(log_jitter) * jnp.exp(log_rescale)


def _symmetric(key: Array, shape: tuple[int, ...], limit: float) -> Array:
    """Draws uniformly from [-limit, limit]."""
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def tables(coords: Array | np.ndarray, periods: np.ndarray) -> tuple[Array, Array]:
    """Returns the (sin, cos) tables, each `(patches, head_dim)`, of `coords` `(patches, 2)`.

    The angle vector of a patch is [row angles, column angles] (head_dim / 4 each), repeated twice.
    """
    angles = 2 * np.pi * jnp.asarray(coords)[:, :, None] / periods
    angles = jnp.tile(angles.reshape(len(coords), -1), (1, 2))
    return jnp.sin(angles), jnp.cos(angles)


def with_unrotated(table: tuple[Array, Array], *, before: int = 0, after: int = 0) -> tuple[Array, Array]:
    """Adds positions that are not rotated to the tables, such as those of CLS and registers before the patches."""
    sin, cos = table
    rows = ((before, after), (0, 0))
    return jnp.pad(sin, rows), jnp.pad(cos, rows, constant_values=1.0)


def rotate(x: Array, table: tuple[Array, Array]) -> Array:
    """Rotates queries or keys `(batch, tokens, heads, head_dim)` by the tables `(tokens, head_dim)`, in float32.

    The first half of every head turns with the second half ("half-split").
    """
    sin, cos = (t[:, None, :] for t in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
