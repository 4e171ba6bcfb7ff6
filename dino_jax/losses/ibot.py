"""The iBOT loss: the student predicts the teacher's targets on the patches it did not see."""

import jax
import jax.numpy as jnp


def ibot_loss(
    student_logits: jax.Array,
    teacher_probs: jax.Array,
    weights: jax.Array,
    *,
    images: int,
    student_temperature: float,
) -> jax.Array:
    """Sums the weighted cross-entropy of masked patches and divides by the number of images (iBOT, equation 2).

    With weights of 1 / (masked patches of the image) this is the mean over an image's masked patches, averaged over
    all images, those without a mask included (they count as 0).

    Args:
      student_logits: `(..., prototypes)`, one row per masked patch, any float dtype.
      teacher_probs: `(..., prototypes)`; constants, no gradient flows into them.
      weights: `(...,)`; 0 marks padding, which contributes nothing to value or gradient, whatever its row holds.
      images: number of global crops in the whole batch, masked or not.
      student_temperature: softmax temperature of the student.

    Returns:
      float32 scalar.
    """
    valid = (weights > 0)[..., None]
    # Replaced before the softmax: a product with weight 0 would turn garbage into NaN, in the gradient as well.
    logits = jnp.where(valid, student_logits.astype(jnp.float32), 0.0)
    targets = jnp.where(valid, jax.lax.stop_gradient(teacher_probs).astype(jnp.float32), 0.0)
    logits = logits / student_temperature
    # Equals - sum_k targets * log_softmax, but keeps a third of the memory for the gradient.
    log_total = jax.nn.logsumexp(logits, axis=-1)
    cross_entropy = jnp.sum(targets, axis=-1) * log_total - jnp.sum(targets * logits, axis=-1)
    return jnp.sum(weights * cross_entropy) / images
