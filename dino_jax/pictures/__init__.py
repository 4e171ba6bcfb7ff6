"""Draws what a network sees and how a run went, as PNG files.

Takes plain arrays. Every function writes its file atomically and returns its path.
"""

from dino_jax.pictures.history import curves
from dino_jax.pictures.maps import attention, cosine_maps, pca, principal_colors
from dino_jax.pictures.tradeoff import global_against_dense

__all__ = ["attention", "cosine_maps", "curves", "global_against_dense", "pca", "principal_colors"]
