"""Networks: vision transformer and prototype head; the only package that imports Flax."""

from dino_jax.models.head import PrototypeHead
from dino_jax.models.variants import VARIANTS
from dino_jax.models.vit import VisionTransformer, intermediate_layers, last_attention

__all__ = ["VARIANTS", "PrototypeHead", "VisionTransformer", "intermediate_layers", "last_attention"]
