"""L2 normalisation of feature vectors."""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, *, eps: float) -> jax.Array:
    """Scales vectors to unit length: x / max(|x|, eps).

    Args:
      x: `(..., dim)`, any float dtype.
      eps: the smallest length divided by. A shorter vector is multiplied by 1 / eps, and the gradient at the zero
        vector is finite.

    Returns:
      float32 `(..., dim)`.
    """
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    # The maximum stands inside the root: the root's own gradient at 0 is infinite.
    return x / jnp.sqrt(jnp.maximum(squared, eps * eps))
