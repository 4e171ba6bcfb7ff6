"""The published sizes (DINOv3, arXiv 2508.10104, tables 1 and 2) as keyword arguments of the model classes."""

from typing import Any

# What the DINOv3 transformers have in common; `VisionTransformer` explains each option.
VIT: dict[str, Any] = {
    "patch_size": 16,
    "width": 384,
    "depth": 12,
    "heads": 6,
    "ffn": "mlp",
    "ffn_ratio": 4.0,
    "ffn_align": 8,
    "registers": 4,
    "norm": "layernorm",
    "norm_epsilon": 1e-5,
    "layer_scale": 1e-5,
    "qkv_bias": True,
    "mask_key_bias": True,
    "untie_cls_and_patch_norms": False,
    "untie_global_and_local_norms": False,
    "rope_base": 100.0,
    "in_channels": 3,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "dinov3_vits16": VIT,
    "dinov3_vits16plus": VIT | {"ffn": "swiglu", "ffn_ratio": 6.0},
    "dinov3_vitb16": VIT | {"width": 768, "heads": 12},
    "dinov3_vitl16": VIT | {"width": 1024, "depth": 24, "heads": 16},
    "dinov3_vith16plus": VIT | {"width": 1280, "depth": 32, "heads": 20, "ffn": "swiglu", "ffn_ratio": 6.0},
    "dinov3_vit7b16": VIT
    | {
        "width": 4096,
        "depth": 40,
        "heads": 32,
        "ffn": "swiglu",
        "ffn_ratio": 3.0,
        "ffn_align": 64,
        "qkv_bias": False,
        "untie_global_and_local_norms": True,
    },
}

CONVNEXT: dict[str, Any] = {
    "depths": (3, 3, 27, 3),
    "widths": (96, 192, 384, 768),
    "layer_scale": 1e-6,
    "in_channels": 3,
}

# Sizes of `ConvNext`, which the recipes do not train.
CONVNEXT_VARIANTS: dict[str, dict[str, Any]] = {
    "dinov3_convnext_tiny": CONVNEXT | {"depths": (3, 3, 9, 3)},
    "dinov3_convnext_small": CONVNEXT,
    "dinov3_convnext_base": CONVNEXT | {"widths": (128, 256, 512, 1024)},
    "dinov3_convnext_large": CONVNEXT | {"widths": (192, 384, 768, 1536)},
}
