"""The published sizes of DINO, DINOv2 and DINOv3 as keyword arguments of the model classes, which explain them."""

from typing import Any

Options = dict[str, Any]

# What the transformers of all generations have in common.
TRANSFORMER: Options = {
    "width": 384,
    "depth": 12,
    "heads": 6,
    "ffn": "mlp",
    "ffn_ratio": 4.0,
    "ffn_align": 8,
    "registers": 0,
    "norm": "layernorm",
    "norm_epsilon": 1e-6,
    "qkv_bias": True,
    "in_channels": 3,
}
BASE: Options = {"width": 768, "heads": 12}
LARGE: Options = {"width": 1024, "depth": 24, "heads": 16}
GIANT: Options = {"width": 1536, "depth": 40, "heads": 24, "ffn": "swiglu"}

# DINO (arXiv 2104.14294, table 1), made for 224 px.
DINO: Options = TRANSFORMER | {"layer_scale": 0.0, "masking": False, "pos_offset": 0.1}
DINO_16: Options = DINO | {"patch_size": 16, "pos_grid": 14}
DINO_8: Options = DINO | {"patch_size": 8, "pos_grid": 28}

# DINOv2 (arXiv 2304.07193, table 17), made for 518 px, and with registers (arXiv 2309.16588).
DINOV2: Options = TRANSFORMER | {"patch_size": 14, "layer_scale": 1e-5, "pos_grid": 37, "pos_offset": 0.1}
REGISTERS: Options = {"registers": 4, "pos_offset": 0.0, "pos_antialias": True}

# DINOv3 (arXiv 2508.10104, tables 1 and 2).
DINOV3: Options = TRANSFORMER | {
    "patch_size": 16,
    "registers": 4,
    "norm_epsilon": 1e-5,
    "layer_scale": 1e-5,
    "mask_key_bias": True,
    "untie_cls_and_patch_norms": False,
    "untie_global_and_local_norms": False,
    "rope_base": 100.0,
}
DINOV3_7B: Options = {
    "width": 4096,
    "depth": 40,
    "heads": 32,
    "ffn": "swiglu",
    "ffn_ratio": 3.0,
    "ffn_align": 64,
    "qkv_bias": False,
    "untie_global_and_local_norms": True,
}

# Sizes of `VisionTransformer`.
VIT_VARIANTS: dict[str, Options] = {
    "dino_vits16": DINO_16,
    "dino_vits8": DINO_8,
    "dino_vitb16": DINO_16 | BASE,
    "dino_vitb8": DINO_8 | BASE,
    "dinov2_vits14": DINOV2,
    "dinov2_vitb14": DINOV2 | BASE,
    "dinov2_vitl14": DINOV2 | LARGE,
    "dinov2_vitg14": DINOV2 | GIANT,
    "dinov2_vits14_reg": DINOV2 | REGISTERS,
    "dinov2_vitb14_reg": DINOV2 | BASE | REGISTERS,
    "dinov2_vitl14_reg": DINOV2 | LARGE | REGISTERS,
    "dinov2_vitg14_reg": DINOV2 | GIANT | REGISTERS,
    "dinov3_vits16": DINOV3,
    "dinov3_vits16plus": DINOV3 | {"ffn": "swiglu", "ffn_ratio": 6.0},
    "dinov3_vitb16": DINOV3 | BASE,
    "dinov3_vitl16": DINOV3 | LARGE,
    "dinov3_vith16plus": DINOV3 | {"width": 1280, "depth": 32, "heads": 20, "ffn": "swiglu", "ffn_ratio": 6.0},
    "dinov3_vit7b16": DINOV3 | DINOV3_7B,
}

# Sizes of `ConvNext`: DINOv3's distilled students.
CONVNEXT: Options = {"depths": (3, 3, 27, 3), "widths": (96, 192, 384, 768), "layer_scale": 1e-6, "in_channels": 3}
CONVNEXT_VARIANTS: dict[str, Options] = {
    "dinov3_convnext_tiny": CONVNEXT | {"depths": (3, 3, 9, 3)},
    "dinov3_convnext_small": CONVNEXT,
    "dinov3_convnext_base": CONVNEXT | {"widths": (128, 256, 512, 1024)},
    "dinov3_convnext_large": CONVNEXT | {"widths": (192, 384, 768, 1536)},
}


# Sizes of `ResNet`, which DINO trained besides its transformers.
RESNET_VARIANTS: dict[str, Options] = {"dino_resnet50": {"depths": (3, 4, 6, 3), "channels": 64, "in_channels": 3}}

# All by name; `models.build` knows the class of each.
VARIANTS: dict[str, Options] = VIT_VARIANTS | CONVNEXT_VARIANTS | RESNET_VARIANTS
