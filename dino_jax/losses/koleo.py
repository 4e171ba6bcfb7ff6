"""The KoLeo regulariser: spreads the features of a batch over the sphere."""

import jax
import jax.numpy as jnp

from dino_jax.losses.normalize import l2_normalize

EPS = 1e-8  # of the references: in the normalisation, on each coordinate of the difference, and inside the logarithm
RESOLUTION = 1e-6  # distances of unit vectors below this are rounding errors of float32


def koleo_loss(x: jax.Array, *, topk: int, group_size: int | None = None) -> jax.Array:
    """Estimates the negative entropy of features from nearest neighbours (Kozachenko-Leonenko; DINOv2, section 4).

        - mean over samples and their `topk` nearest neighbours of  log(distance on the unit sphere + 1e-8)

    Neighbours are chosen by cosine, without gradient; both ends of a pair receive one. `topk=1` is the loss of the
    papers; more neighbours and groups are the distributed form of DINOv3. The gradient is that of the mean over the
    global batch, which is what the reference's per-rank gradients average to.

    Args:
      x: `(samples, dim)`, any float dtype; the CLS features of one global crop over the whole batch.
      topk: neighbours per sample.
      group_size: neighbours are sought among this many consecutive samples; None for all.

    Returns:
      float32 scalar.

    Raises:
      ValueError: when groups do not divide the samples or hold too few of them for `topk` neighbours.
    """
    samples, dim = x.shape
    size = samples if group_size is None else group_size
    if size < 1 or samples % size:
        raise ValueError(f"koleo_loss: group_size {size} does not divide {samples} samples; choose a divisor.")
    if not 1 <= topk < size:
        raise ValueError(f"koleo_loss: topk is {topk} in groups of {size} samples; it must be 1 to {size - 1}.")
    x = l2_normalize(x, eps=EPS).reshape(samples // size, size, dim)
    neighbours = _nearest(jax.lax.stop_gradient(x), topk=topk)
    difference = x[:, :, None] - jax.vmap(lambda group, index: group[index])(x, neighbours)
    # The difference of near-duplicates is rounding noise. The references follow it with a gradient of 1e7 that drowns
    # the rest of the batch; here they count as exact duplicates and have no gradient.
    duplicate = jnp.sum(difference * difference, axis=-1, keepdims=True) < RESOLUTION**2
    difference = jnp.where(duplicate, 0.0, difference) + EPS
    distance = jnp.sqrt(jnp.sum(difference * difference, axis=-1))
    return -jnp.mean(jnp.log(distance + EPS))


def _nearest(x: jax.Array, *, topk: int) -> jax.Array:
    """Finds the `topk` largest cosines per row of unit vectors `(groups, size, dim)`: int32 `(groups, size, topk)`."""
    cosines = jnp.einsum("gid,gjd->gij", x, x, precision=jax.lax.Precision.HIGHEST)
    cosines = jnp.where(jnp.eye(x.shape[1], dtype=bool), -jnp.inf, cosines)
    return jax.lax.top_k(cosines, topk)[1]
