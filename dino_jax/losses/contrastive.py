"""The contrastive loss that aligns images with their captions (CLIP, arXiv 2103.00020; dino.txt, arXiv 2412.16334)."""

import jax
import jax.numpy as jnp


def contrastive_loss(images: jax.Array, texts: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Averages the cross-entropy of finding each image's text in the batch, and each text's image.

        mean over i of  - (log_softmax_j(s[i, j]) + log_softmax_j(s[j, i])) / 2  at j = i,   s = exp(log_scale) * cosine

    The gradient is that of the mean over the global batch, which is what the reference's per-rank gradients average to.

    Args:
      images: `(samples, dim)` of unit length, any float dtype; the whole batch.
      texts: `(samples, dim)` of unit length; row i belongs to image i.
      log_scale: scalar or `(1,)`, learned; CLIP starts it at log(1 / 0.07) and keeps it within [0, log(100)].

    Returns:
      float32 scalar.

    Raises:
      ValueError: when images and texts differ in number or width.
    """
    if images.shape != texts.shape:
        raise ValueError(f"contrastive_loss: images {images.shape} and texts {texts.shape} are not pairs; match them.")
    images, texts = images.astype(jnp.float32), texts.astype(jnp.float32)
    cosines = jnp.einsum("id,jd->ij", images, texts, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.exp(log_scale.astype(jnp.float32).reshape(())) * cosines
    total = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(total / 2 - jnp.diagonal(logits))
