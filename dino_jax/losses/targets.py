"""Turns teacher logits into target probabilities: Sinkhorn-Knopp, or centering with sharpening.

Targets are constants to the student: no gradient flows through any function of this module.
"""

import jax
import jax.numpy as jnp


def _inverse(sums: jax.Array) -> jax.Array:
    """Inverts positive sums; a sum over nothing (0) gives 0, and NaN stays NaN."""
    return jnp.where(sums == 0, 0.0, 1.0 / jnp.where(sums == 0, 1.0, sums))


def sinkhorn_knopp(
    logits: jax.Array,
    temperature: jax.typing.ArrayLike,
    *,
    iterations: int,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Assigns samples to prototypes so that all prototypes are used equally (SwAV, Algorithm 1; DINOv2, section 4).

    Scales the rows and columns of exp(logits / temperature) in turn: each prototype to the same mass, then each sample
    to mass 1. Only the two scaling vectors are iterated, so one matrix of the size of the logits is kept.

    The references exponentiate directly, which overflows above logits / temperature = 88 and divides by 0 when a
    prototype underflows. Here the exponent is shifted so that every row and every column of the matrix holds a 1:
    all sums are at least 1 / (samples * prototypes)**iterations and the result is finite for any finite logits.

    Args:
      logits: `(samples, prototypes)`, any float dtype; samples of the whole global batch.
      temperature: scalar above 0.
      iterations: how often both normalisations are applied, at least 1.
      weights: `(samples,)` of 1 for a sample and 0 for padding; padding influences nothing, whatever it holds.

    Returns:
      float32 `(samples, prototypes)`; rows sum to 1, rows of padding are 0.

    Raises:
      ValueError: when `iterations` is below 1.
    """
    if iterations < 1:
        raise ValueError(f"sinkhorn_knopp: iterations is {iterations}; it must be at least 1.")
    scores = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
    valid = jnp.ones(scores.shape[:1], bool) if weights is None else weights > 0
    scores = jnp.where(valid[:, None], scores, -jnp.inf)
    # The first normalisation of the columns cancels their shift; that of the rows is the initial row scale.
    column_shift = jnp.max(scores, axis=0)
    column_shift = jnp.where(column_shift == -jnp.inf, 0.0, column_shift)  # when all samples are padding
    row_shift = jnp.where(valid, jnp.max(scores - column_shift, axis=1), 0.0)
    kernel = jnp.exp(scores - column_shift - row_shift[:, None])
    row_scale = jnp.where(valid, jnp.exp(row_shift), 0.0)
    for _ in range(iterations):
        # HIGHEST: accelerators would otherwise round both factors to bfloat16 or TF32.
        column_scale = _inverse(jnp.matmul(row_scale, kernel, precision=jax.lax.Precision.HIGHEST))
        row_scale = _inverse(jnp.matmul(kernel, column_scale, precision=jax.lax.Precision.HIGHEST))
    return kernel * column_scale * row_scale[:, None]


def softmax_center(logits: jax.Array, center: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
    """Centers and sharpens teacher logits: softmax((logits - center) / temperature) (DINO, section 3.1).

    Args:
      logits: `(..., prototypes)`, any float dtype.
      center: `(prototypes,)`, the running mean of `update_center`.
      temperature: scalar above 0; smaller is sharper.

    Returns:
      float32 `(..., prototypes)`.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    return jax.nn.softmax((logits - center) / temperature, axis=-1)


def update_center(
    center: jax.Array, logits: jax.Array, *, momentum: float, weights: jax.Array | None = None
) -> jax.Array:
    """Moves the center towards the mean teacher logits of the batch (DINO, equation 4).

    Whether a step uses the center before or after its own update is the caller's: DINO computes the loss with the
    old one; DINOv2 and DINOv3 apply each update at the start of the next call, which gives the same probabilities.

    Args:
      center: float32 `(prototypes,)`.
      logits: `(..., prototypes)`, any float dtype.
      momentum: share of the old center that stays.
      weights: `(...,)` of 1 for a sample and 0 for padding; the center stays as it is when all are 0.

    Returns:
      float32 `(prototypes,)`.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32).reshape(-1, logits.shape[-1])
    valid = jnp.ones(logits.shape[:1], bool) if weights is None else weights.reshape(-1) > 0
    samples = jnp.sum(valid)
    mean = jnp.sum(jnp.where(valid[:, None], logits, 0.0), axis=0) / jnp.maximum(samples, 1)
    return jnp.where(samples > 0, momentum * center + (1 - momentum) * mean, center)
