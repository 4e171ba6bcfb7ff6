"""Networks: vision transformer, ConvNeXt, ResNet and prototype head; the only package that imports Flax."""

from dino_jax.models.channels import inflate_patch_embed
from dino_jax.models.convnext import ConvNext
from dino_jax.models.extractor import Extractor
from dino_jax.models.head import PrototypeHead
from dino_jax.models.named import Backbone, build, init_variables, network_class
from dino_jax.models.readout import intermediate_layers, last_attention
from dino_jax.models.resnet import ResNet
from dino_jax.models.stages import intermediate_stages
from dino_jax.models.variants import CONVNEXT_VARIANTS, RESNET_VARIANTS, VARIANTS, VIT_VARIANTS
from dino_jax.models.vit import VisionTransformer

__all__ = [
    "CONVNEXT_VARIANTS",
    "RESNET_VARIANTS",
    "VARIANTS",
    "VIT_VARIANTS",
    "Backbone",
    "ConvNext",
    "Extractor",
    "PrototypeHead",
    "ResNet",
    "VisionTransformer",
    "build",
    "inflate_patch_embed",
    "init_variables",
    "intermediate_layers",
    "intermediate_stages",
    "last_attention",
    "network_class",
]
