"""Networks: vision transformer, ConvNeXt and prototype head; the only package that imports Flax."""

from dino_jax.models.convnext import ConvNext, intermediate_stages
from dino_jax.models.extractor import Extractor
from dino_jax.models.head import PrototypeHead
from dino_jax.models.named import Backbone, build
from dino_jax.models.variants import CONVNEXT_VARIANTS, VARIANTS, VIT_VARIANTS
from dino_jax.models.vit import VisionTransformer, intermediate_layers, last_attention

__all__ = [
    "CONVNEXT_VARIANTS",
    "VARIANTS",
    "VIT_VARIANTS",
    "Backbone",
    "ConvNext",
    "Extractor",
    "PrototypeHead",
    "VisionTransformer",
    "build",
    "intermediate_layers",
    "intermediate_stages",
    "last_attention",
]
