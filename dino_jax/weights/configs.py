"""The configuration files of Hugging Face and timm, as options of our networks and back."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_jax.models import VARIANTS
from dino_jax.models.layers import swiglu_hidden
from dino_jax.weights.layouts import Layout
from dino_jax.weights.network import BASES, Architecture, published

Options = Mapping[str, Any]
Config = dict[str, Any]

# By layout: what config.json calls the model, and its class.
CLASSES = {
    "hf_dino": ("vit", "ViTModel"),
    "hf_dinov2": ("dinov2", "Dinov2Model"),
    "hf_dinov2_registers": ("dinov2_with_registers", "Dinov2WithRegistersModel"),
    "hf_dinov3": ("dinov3_vit", "DINOv3ViTModel"),
    "hf_convnext": ("dinov3_convnext", "DINOv3ConvNextModel"),
}

KINDS = tuple(kind for kind, _ in CLASSES.values())

# How transformers prepares images for each family, as published; `resample` is Pillow's number, 2 linear, 3 cubic.
SQUARE = {"height": 224, "width": 224}
PROCESSORS: dict[str, Config] = {
    "dino": {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 2},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": SQUARE,
    },
    # Before its fifth version, transformers knows the class by this name alone.
    "dinov3": {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE, "resample": 2},
}
PROCESSORS["convnext"] = PROCESSORS["dinov3"]

# timm's names; those with a bias that is not zero end in "_qkvb" there.
TIMM = {
    "dino_vits16": "vit_small_patch16_224",
    "dino_vits8": "vit_small_patch8_224",
    "dino_vitb16": "vit_base_patch16_224",
    "dino_vitb8": "vit_base_patch8_224",
    "dino_resnet50": "resnet50",
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14": "vit_base_patch14_dinov2",
    "dinov2_vitl14": "vit_large_patch14_dinov2",
    "dinov2_vitg14": "vit_giant_patch14_dinov2",
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2",
    "dinov2_vitl14_reg": "vit_large_patch14_reg4_dinov2",
    "dinov2_vitg14_reg": "vit_giant_patch14_reg4_dinov2",
    "dinov3_vits16": "vit_small_patch16_dinov3",
    "dinov3_vits16plus": "vit_small_plus_patch16_dinov3",
    "dinov3_vitb16": "vit_base_patch16_dinov3",
    "dinov3_vitl16": "vit_large_patch16_dinov3",
    "dinov3_vith16plus": "vit_huge_plus_patch16_dinov3",
    "dinov3_vit7b16": "vit_7b_patch16_dinov3",
    "dinov3_convnext_tiny": "convnext_tiny",
    "dinov3_convnext_small": "convnext_small",
    "dinov3_convnext_base": "convnext_base",
    "dinov3_convnext_large": "convnext_large",
}


# What timm's networks of these names have as published, whatever their configuration says.
AS_PUBLISHED = ("norm", "rope_base", "rope_normalize", "rope_min_period", "rope_max_period")


def options_of(config: Config, folder: Path) -> Options:
    """Returns what the config.json of Hugging Face in `folder` says that tensors do not show.

    Raises:
      ValueError: for a model that is not one of DINO's, or when something is missing.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type {kind!r} in config.json is not among those read here: {', '.join(KINDS)}")
    epsilon = _number(config, "layer_norm_eps", folder)
    if kind == "dinov3_convnext":
        if not math.isclose(epsilon, 1e-6):
            raise ValueError(f"layer_norm_eps = {epsilon} in config.json: only 1e-6 is supported for ConvNeXt")
        return {}
    act = "silu" if config.get("use_gated_mlp") else "gelu"
    if config.get("hidden_act", act) != act:
        raise ValueError(f"hidden_act = {config['hidden_act']!r} in config.json: only {act!r} is supported")
    options: Config = {"heads": _number(config, "num_attention_heads", folder), "norm_epsilon": epsilon}
    if kind == "dinov3_vit":
        # Some versions of transformers gather what concerns RoPE; where both are there, the class takes the plain one.
        gathered = config.get("rope_parameters") or {}
        if not isinstance(gathered, Mapping):
            raise ValueError(f"config.json of {folder} is damaged: rope_parameters = {gathered!r} is not a mapping")
        rope = config if config.get("rope_theta") is not None else gathered
        options["rope_base"] = float(_number(rope, "rope_theta", folder))
    return options


def _number(config: Options, key: str, folder: Path) -> Any:
    value = config.get(key)
    if value is None:
        raise ValueError(f"config.json of {folder} lacks {key}: fetch it again, or add the number")
    if not isinstance(value, int | float) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"config.json of {folder} has {key} = {value!r}, which must be a number above 0: mend it")
    return value


def hugging_face(architecture: Architecture, layout: Layout) -> Config:
    """Returns the config.json for weights in one of Hugging Face's layouts.

    Raises:
      ValueError: when the class there lacks an option of this network.
    """
    kind, name = CLASSES[layout.name]
    o = architecture.options
    config: Config = {"architectures": [name], "model_type": kind, "num_channels": o["in_channels"]}
    if architecture.family == "convnext":
        _require(o["layer_scale"], "layer_scale", name)
        shapes = {"depths": list(o["depths"]), "hidden_sizes": list(o["widths"]), "layer_norm_eps": 1e-6}
        return config | shapes | {"hidden_act": "gelu", "layer_scale_init_value": o["layer_scale"], "image_size": 224}
    hidden = architecture.build().hidden
    config |= {
        "hidden_size": o["width"],
        "num_hidden_layers": o["depth"],
        "num_attention_heads": o["heads"],
        "patch_size": o["patch_size"],
        "layer_norm_eps": o["norm_epsilon"],
        "hidden_act": "gelu",
        "image_size": o["patch_size"] * (o.get("pos_grid") or 14),
    }
    _require(o["norm"] == "layernorm", "norm", name)
    if kind == "vit":
        _require(not o["layer_scale"], "layer_scale", name)
        return config | {"intermediate_size": hidden, "qkv_bias": o["qkv_bias"]}
    _require(o["layer_scale"], "layer_scale", name)
    config["layerscale_value"] = 1.0
    if kind != "dinov3_vit":
        return config | _dinov2(o, hidden, kind, name)
    for key in ("untie_cls_and_patch_norms", "rope_min_period", "rope_max_period"):
        _require(not o.get(key), key, name)
    _require(o.get("rope_normalize", "separate") == "separate", "rope_normalize", name)
    return config | {
        "intermediate_size": hidden,
        "hidden_act": "silu" if o["ffn"] == "swiglu" else "gelu",
        "use_gated_mlp": o["ffn"] == "swiglu",
        "query_bias": o["qkv_bias"],
        "key_bias": o["qkv_bias"] and not o.get("mask_key_bias"),
        "value_bias": o["qkv_bias"],
        "proj_bias": o.get("proj_bias", True),
        "mlp_bias": o.get("ffn_bias", True),
        "num_register_tokens": o["registers"],
        "rope_theta": o["rope_base"],
    }


def _dinov2(o: Options, hidden: int, kind: str, name: str) -> Config:
    gated = o["ffn"] == "swiglu"
    # The class takes whole ratios; for SwiGLU it rounds two thirds of that width up to a multiple of 8.
    widths = {ratio: swiglu_hidden(o["width"], ratio, 8) if gated else o["width"] * ratio for ratio in range(1, 17)}
    ratio = next((ratio for ratio, width in widths.items() if width == hidden), None)
    _require(ratio, "ffn_ratio", name)
    config: Config = {"qkv_bias": o["qkv_bias"], "use_swiglu_ffn": gated, "mlp_ratio": ratio}
    if kind == "dinov2_with_registers":
        return config | {"num_register_tokens": o["registers"]}
    return config | {"use_mask_token": True}


def preprocessor(family: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Config:
    """Returns the preprocessor_config.json for weights of a family, by which transformers prepares images."""
    steps = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    return {**PROCESSORS[family], **steps, "image_mean": list(mean), "image_std": list(std)}


def _require(fits: Any, option: str, name: str, library: str = "transformers") -> None:
    if not fits:
        raise ValueError(f"{name} of {library} cannot be built with this network's {option}: choose another format")


def _differs_in_size_alone(options: Options, published: Options) -> bool:
    same = ("ffn", "ffn_ratio", "registers", "norm", "qkv_bias", "rope_base")
    return all(options.get(key) == published.get(key) for key in same)


def timm(architecture: Architecture, mean: tuple[float, ...], std: tuple[float, ...], *, biased: bool) -> Config:
    """Returns the config.json for weights in one of timm's layouts; `biased` says whether qkv biases are stored."""
    o = architecture.options
    arguments: Config = {"num_classes": 0}
    name = TIMM.get(architecture.name, "")
    if not name and "heads" in o:
        base = BASES[architecture.family] + ("_reg" if architecture.family == "dinov2" and o["registers"] else "")
        if _differs_in_size_alone(o, VARIANTS[base]):
            name = TIMM[base]
            arguments |= {"embed_dim": o["width"], "depth": o["depth"], "num_heads": o["heads"]}
            arguments |= {"patch_size": o["patch_size"]}
    if "heads" in o:
        if architecture.name in TIMM:
            network, named = architecture.build(), published(architecture.name).build()
            for option in AS_PUBLISHED:
                same = getattr(network, option, None) == getattr(named, option, None)
                _require(same, option, name, "timm")
        transformer = name or "a vision transformer"
        _require(bool(o["layer_scale"]) == (architecture.family != "dino"), "layer_scale", transformer, "timm")
        _require(not o.get("untie_cls_and_patch_norms"), "untie_cls_and_patch_norms", transformer, "timm")
    if architecture.family == "dinov3" and name and biased:
        name += "_qkvb"
    if "patch_size" in o:
        side = o["patch_size"] * (o.get("pos_grid") or 16)
        arguments |= {"img_size": side, "global_pool": "token", "dynamic_img_size": True}
    else:
        side = 224
    if o["in_channels"] != 3:
        arguments["in_chans"] = o["in_channels"]
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": o.get("width") or o["widths"][-1] if architecture.family != "resnet" else 2048,
        "model_args": arguments,
        "pretrained_cfg": {
            "mean": list(mean),
            "std": list(std),
            "input_size": [o["in_channels"], side, side],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
        },
    }
