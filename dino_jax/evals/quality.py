"""Measures of features that need no labels.

Alignment and uniformity: Wang and Isola, arXiv 2005.10242, section 4.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dino_jax.evals.features import unit

KERNEL = 2.0  # t of the Gaussian potential, the paper's choice


@jax.jit
def alignment(first: Array, second: Array) -> Array:
    """Returns the mean squared distance of unit features `(images, dim)` of two views: 0 alike, 2 unrelated, 4 opposed.

    The paper's exponent of 2.
    """
    return jnp.mean(jnp.sum(jnp.square(unit(first) - unit(second)), axis=-1))


def uniformity(features: np.ndarray, *, block: int = 1024) -> float:
    """Returns log of the mean of exp(-2 |x - y|^2) over pairs of different unit features `(images, dim)`.

    0 when all are alike; lower is more uniform, with a limit near -4 in many dimensions.

    Raises:
      ValueError: for fewer than two images.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"uniformity: {count} image has no pair; give at least two")
    x = unit(jnp.asarray(features, jnp.float32))
    total = 0.0
    for start in range(0, count, block):
        part = x[start : start + block]
        total += float(_potential(part, x, start))
    return float(np.log(max(total, 1e-38) / (count * (count - 1))))


@jax.jit
def _potential(part: Array, x: Array, start: int | Array) -> Array:
    cosines = jnp.matmul(part, x.T, precision=jax.lax.Precision.HIGHEST)
    rows = jnp.arange(len(part))
    return jnp.sum(jnp.exp(-KERNEL * (2 - 2 * cosines)).at[rows, start + rows].set(0.0))


@jax.jit
def neighbour_cosine(patches: Array) -> Array:
    """Returns the mean cosine of patches `(images, height, width, dim)` to the next one in their row and column.

    Beside `mean_pairwise_cosine` it tells whether what lies together is more alike than what lies apart.
    """
    patches = unit(patches)
    across = jnp.sum(patches[:, :, 1:] * patches[:, :, :-1], axis=-1)
    down = jnp.sum(patches[:, 1:] * patches[:, :-1], axis=-1)
    count = max(int(across.size) + int(down.size), 1)
    return (jnp.sum(across) + jnp.sum(down)) / count


@jax.jit
def spectrum(features: Array) -> Array:
    """Returns the singular values of features `(samples, dim)`, largest first, as shares of their sum."""
    values = jnp.linalg.svd(features.astype(jnp.float32), compute_uv=False)
    return values / jnp.maximum(values.sum(), jnp.finfo(jnp.float32).tiny)


def rankme(features: Array) -> Array:
    """Returns the effective rank of features `(samples, dim)`: a float32 between 1 and min(samples, dim)."""
    return effective_rank(spectrum(features))


def effective_rank(shares: Array | np.ndarray) -> Array:
    """Returns exp of the entropy of singular values that sum to 1 (RankMe, arXiv 2210.02885, equation 1)."""
    shares = shares + 1e-7
    return jnp.exp(-jnp.sum(shares * jnp.log(shares)))


@jax.jit
def cls_patch_cosine(cls: Array, patches: Array) -> Array:
    """Returns the mean cosine of each CLS `(images, dim)` to its patches `(images, patches, dim)`.

    It grows when CLS information leaks into the patches (DINOv3, section 4.1).
    """
    return jnp.mean(jnp.einsum("bd,bnd->bn", unit(cls), unit(patches), precision=jax.lax.Precision.HIGHEST))


@jax.jit
def mean_pairwise_cosine(vectors: Array) -> Array:
    """Returns the mean cosine over pairs of different vectors in `(..., vectors, dim)`, averaged over the rest.

    Over the patches of an image it tells whether dense features still differ from place to place; over the CLS tokens
    of a batch, whether images still differ. Linear in the number of vectors. Raises ValueError for fewer than two.
    """
    count = vectors.shape[-2]
    if count < 2:
        raise ValueError(f"mean_pairwise_cosine: {count} vector has no pair; give at least two")
    vectors = unit(vectors)
    squared_sum = jnp.sum(jnp.square(vectors.sum(axis=-2)), axis=-1)
    return jnp.mean((squared_sum - jnp.sum(jnp.square(vectors), axis=(-2, -1))) / (count * (count - 1)))


@jax.jit
def cosines(first: Array, second: Array) -> Array:
    """Returns the cosine of each pair of rows `(n, dim)`, as `(n,)`."""
    return jnp.sum(unit(first) * unit(second), axis=-1)
