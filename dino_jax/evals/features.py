"""Normalises and checks features, for all protocols."""

import jax
import jax.numpy as jnp
import numpy as np


def unit(vectors: jax.Array) -> jax.Array:
    """L2-normalises the last axis in float32, so that products are cosines; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def check_finite(features: np.ndarray, whose: str) -> None:
    """Raises ValueError, beginning with `whose`, unless all features are finite."""
    if not np.isfinite(features).all():
        raise ValueError(f"{whose} are not all finite; check the model that made them")
