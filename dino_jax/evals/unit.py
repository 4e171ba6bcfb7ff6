"""Vectors of length 1, whose products are cosines."""

import jax
import jax.numpy as jnp


def unit(vectors: jax.Array) -> jax.Array:
    """L2-normalises the last axis in float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
