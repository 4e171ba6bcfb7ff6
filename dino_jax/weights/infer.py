"""Finds out from names and shapes which architecture a checkpoint is of."""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from dino_jax import models
from dino_jax.models import rope
from dino_jax.weights.files import StateDict
from dino_jax.weights.layouts import Layout
from dino_jax.weights.mapping import ROUNDED
from dino_jax.weights.network import BASES, Architecture, family_of
from dino_jax.weights.rules import ABSENT, LONGEST_STAGE

Found = dict[str, Any]

# These tell one published transformer from another; the rest follows from them or is not a matter of shape.
TELLING = ("width", "depth", "patch_size", "ffn", "hidden", "registers", "qkv_bias", "layer_scaled")


def architecture(state: StateDict, layout: Layout, known: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of a checkpoint.

    Args:
      known: options that the checkpoint's own configuration gives, or the user.

    Raises:
      ValueError: when what a transformer's shapes do not show, its heads, is neither known nor published.
      KeyError: with the name of a tensor that the layout has and the checkpoint lacks.
    """
    if layout.family in ("convnext", "resnet"):
        found = _convolutional(state, layout)
        kind = _published_convolutional(found, layout.family) or f"{layout.family}_custom"
        return Architecture(kind, layout.family, {**models.VARIANTS[BASES[layout.family]], **found, **known})
    found = _transformer(state, layout)
    name = published(found, layout)
    hidden, scaled = found.pop("hidden"), found.pop("layer_scaled")
    base: Mapping[str, Any] = models.VARIANTS[name or BASES[layout.family]]
    if name is None:
        found |= _feed_forward(found["ffn"], found["width"], hidden)
        found.setdefault("heads", known.get("heads"))
        if found["heads"] is None:
            raise ValueError(
                f"no published network of {layout.family} has width {found['width']}, depth {found['depth']}, patch "
                f"{found['patch_size']}, {found['registers']} registers and {hidden} feed-forward channels "
                f"({found['ffn']}), and shapes do not show the number of heads: give it (--heads N, in Python heads=N)"
            )
    else:
        _check_heads(name, found.get("heads", base["heads"]), known.get("heads"), certain="heads" in found)
    found["layer_scale"] = (base["layer_scale"] or 1e-5) if scaled else 0.0
    options = {**base, **found, **layout.options, **known}
    return Architecture(name or f"{layout.family}_custom", layout.family, options)


def _check_heads(name: str, there: int, asked: int | None, *, certain: bool) -> None:
    """Says that a published network has another number of heads than asked for.

    Raises:
      ValueError: if it is `certain`, by the periods of rotary positions.
    """
    if asked in (None, there):
        return
    if certain:
        raise ValueError(f"the weights have rotary positions of {there} heads, not {asked}: leave the heads out")
    warnings.warn(f"the weights look like {name}, which has {there} heads: {asked} are taken, as asked", stacklevel=2)


def published(found: Found, layout: Layout) -> str | None:
    """Returns the name of the published transformer that has these features, if there is one."""
    for name, options in models.VIT_VARIANTS.items():
        telling = {key: found[key] for key in TELLING if key in found}
        if family_of(name) == layout.family and features(options).items() >= telling.items():
            return name
    return None


def features(options: Mapping[str, Any]) -> Found:
    """Returns the telling features of a transformer's options."""
    hidden = models.VisionTransformer(**options).hidden
    scaled = bool(options["layer_scale"])
    return {key: options[key] for key in TELLING if key in options} | {"hidden": hidden, "layer_scaled": scaled}


def _transformer(state: StateDict, layout: Layout) -> Found:
    """Reads what the shapes of a transformer's tensors show."""
    there = _by_path(state, layout)
    cls, patch = there["cls_token"], there["patch_embed/kernel"]
    prefix = _block_prefix(layout)
    numbers = {int(match[1]) for name in state if (match := re.match(rf"{prefix}(\d+)\.", name))}
    if not any(path.startswith("blocks/") for path in there):
        raise KeyError(next(rule.theirs[0] for rule in layout.rules if "blocks/norm1/scale" in rule.ours).format(i=0))
    out = there.get("blocks/mlp/fc2/kernel", there.get("blocks/mlp/w3/kernel"))
    inner = there.get("blocks/mlp/fc1/kernel", there.get("blocks/mlp/w1/kernel"))
    gated = "blocks/mlp/fc1/kernel" not in there or "blocks/mlp/w1/kernel" in there
    if inner is not None and out is not None and layout.name.startswith("timm_dinov2"):
        gated = inner[0] == 2 * out[1]
    found: Found = {
        "width": cls[-1],
        "depth": max(numbers) + 1,
        "patch_size": patch[-1],
        "in_channels": patch[1],
        "ffn": "swiglu" if gated else "mlp",
        "hidden": out[1] if out else 0,
        "registers": there["registers"][1] if "registers" in there else 0,
        "layer_scaled": "blocks/ls1/gamma" in there,
        "untie_cls_and_patch_norms": "cls_norm/scale" in there,
        "untie_global_and_local_norms": "local_cls_norm/scale" in there,
        "proj_bias": "blocks/attn/proj/bias" in there,
        "ffn_bias": "blocks/mlp/fc2/bias" in there or "blocks/mlp/w3/bias" in there,
        "masking": layout.family != "dino",
    }
    found |= _attention_bias(state, layout, there)
    if "pos_embed" in there:
        tokens = there["pos_embed"][1] - (0 if layout.name == "timm_dinov2_registers" else 1)
        found["pos_grid"] = math.isqrt(tokens)
        if tokens < 1 or found["pos_grid"] ** 2 != tokens:
            raise ValueError(
                f"the position embedding has {tokens} places, which are no square grid: only those are read"
            )
    if "rope_embed.periods" in state:
        periods = state["rope_embed.periods"].astype(np.float64)
        found["heads"] = found["width"] // (4 * len(periods))
        found |= _rope(periods)
    return found


def _rope(periods: np.ndarray) -> Found:
    """Returns the options that give these periods `(head_dim / 4,)`, where the published ones do not."""
    count = len(periods)
    published = rope.periods(4 * count, base=models.VARIANTS[BASES["dinov3"]]["rope_base"])
    if count < 2 or not (periods > 0).all() or np.allclose(periods, published, rtol=ROUNDED, atol=0):
        return {}
    if periods[0] != 1:
        limits = {"rope_min_period": float(periods[0]), "rope_max_period": float(periods[-1])}
        return {"rope_base": None} | limits
    # In float32 the last digits of the base are lost.
    return {"rope_base": float(f"{periods[-1] ** (count / (count - 1)):.5g}")}


def _attention_bias(state: StateDict, layout: Layout, there: Mapping[str, Any]) -> Found:
    """Says whether queries, keys and values have a bias, and the keys' is held at zero."""
    biased = "blocks/attn/qkv/bias" in there
    if layout.family != "dinov3":
        return {"qkv_bias": biased}
    if not biased:
        return {} if layout.whose == "timm" else {"qkv_bias": False}  # timm leaves biases out that are zero
    free = {"official": "blocks.0.attn.qkv.bias_mask" not in state, "hf": "layer.0.attention.k_proj.bias" in state}
    return {"qkv_bias": True, "mask_key_bias": not free.get(layout.whose, False)}


def _feed_forward(ffn: str, width: int, hidden: int) -> Found:
    """Returns options that give this hidden width."""
    if ffn == "mlp":
        return {"ffn_ratio": hidden / width}
    align = 8 if hidden % 8 == 0 else 1
    # In the middle between the ratios that would give one more and one less, so that no rounding matters.
    return {"ffn_ratio": (hidden * 1.5 + (-1.0 if align > 1 else 0.75)) / width, "ffn_align": align}


def _convolutional(state: StateDict, layout: Layout) -> Found:
    """Reads what the shapes of a ConvNeXt's or ResNet's tensors show."""
    there = _by_path(state, layout)
    if layout.family == "resnet":
        numbered = [re.match(r"stages_(\d+)_(\d+)/conv1/kernel", path) for path in there]
        stages = [int(match[1]) for match in numbered if match]
        stem = there["stem/conv/kernel"]
        return {"depths": tuple(stages.count(i) for i in range(4)), "channels": stem[0], "in_channels": stem[1]}
    rule = next(rule for rule in layout.rules if rule.ours == ("stages_{s}/blocks/depthwise/bias",))
    depths = [next(i for i in range(LONGEST_STAGE) if rule.names(place, i)[0] not in state) for place in rule.places()]
    return {
        "depths": tuple(depths),
        "widths": tuple(there[f"stages_{stage}/downsample/conv/bias"][0] for stage in range(4)),
        "layer_scale": 1e-6 if any(path.endswith("ls/gamma") for path in there) else 0.0,
        "in_channels": there["stages_0/downsample/conv/kernel"][1],
    }


def _published_convolutional(found: Found, family: str) -> str | None:
    for name, options in models.VARIANTS.items():
        if family_of(name) == family and all(found[key] == options[key] for key in found if key != "in_channels"):
            return name
    return None


def _by_path(state: StateDict, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Returns the shape there of the first tensor of every parameter of ours that the checkpoint has."""
    out: dict[str, tuple[int, ...]] = {}
    for rule in layout.rules:
        for place in rule.places():
            names = rule.names(place, 0)
            there = [name for name in names if name in state]
            if not there or any(name not in state and not may for name, may in zip(names, rule.may_lack, strict=True)):
                continue
            firsts = names if len(rule.ours) == len(names) else [there[0]] * len(rule.ours)
            for path, name in zip(rule.paths(place), firsts, strict=True):
                out.setdefault(path, state[name].shape)
    return out


def _block_prefix(layout: Layout) -> str:
    name = next(rule.theirs[0] for rule in layout.rules if rule.stacked and rule.theirs[0] != ABSENT)
    return re.escape(name.split("{i}")[0])
