"""Draws what a network sees and how a run went.

Takes plain arrays. What writes a file (PNG, GIF, MP4, HTML) writes it atomically and returns its path.
"""

from dino_jax.pictures.history import curves
from dino_jax.pictures.maps import attention, cosine_maps, pca
from dino_jax.pictures.tradeoff import can_be_drawn, global_against_dense

__all__ = ["attention", "can_be_drawn", "cosine_maps", "curves", "global_against_dense", "pca"]
