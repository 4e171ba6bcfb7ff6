"""The checkpoint layouts by name, how each is recognised, and what in it is not a parameter of ours."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dino_jax.models import rope
from dino_jax.weights import hugging_face, official, timm
from dino_jax.weights.rules import Rule

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kind of checkpoint names and shapes its tensors.

    Attributes:
      name: "<whose>_<which>".
      family: of the architectures that are stored like this, a key of `network.BASES`.
      rules: the table.
      marks: patterns; a checkpoint has a name matching each of them.
      never: patterns that no name matches.
      buffers: patterns of tensors that follow from the options, and what makes them from options.
      kept: patterns of tensors that change nothing, and are kept for the way back.
      skipped: patterns of tensors that may be left out, and why.
      options: what the layout says about the network by itself, beyond its family.
    """

    name: str
    family: str
    rules: tuple[Rule, ...]
    marks: tuple[str, ...]
    never: tuple[str, ...] = ()
    buffers: Mapping[str, Callable[[Options], np.ndarray | None]] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Options = dataclasses.field(default_factory=dict)

    @property
    def whose(self) -> str:
        """Returns "official", "hf" or "timm"."""
        return self.name.split("_")[0]

    def matches(self, names: list[str]) -> bool:
        """Says whether a checkpoint with these names looks like this layout."""
        there = [any(re.fullmatch(mark, name) for name in names) for mark in self.marks]
        return all(there) and not any(re.fullmatch(mark, name) for name in names for mark in self.never)


def rope_periods(options: Options) -> np.ndarray:
    """Returns the buffer of RoPE's periods `(head_dim / 4,)`."""
    limits = {"min_period": options.get("rope_min_period"), "max_period": options.get("rope_max_period")}
    return rope.periods(options["width"] // options["heads"], base=options["rope_base"], **limits)


def bias_mask(options: Options) -> np.ndarray | None:
    """Returns the mask `(3 * width,)` that holds the key bias at zero; None for a network without."""
    if not (options["qkv_bias"] and options.get("mask_key_bias")):
        return None
    return np.repeat(np.array([1, 0, 1], np.float32), options["width"])


# How the position embedding is resized to other grids, where the layout's own code does it in its own way.
BY_SIZE = {"pos_offset": 0.0, "pos_antialias": False}
BY_SIZE_ANTIALIASED = {"pos_offset": 0.0, "pos_antialias": True}
SHIFTED = {"pos_offset": 0.1, "pos_antialias": False}

BATCHES = (r".*\.num_batches_tracked",)
CLASSIFIER = {r"head\.(weight|bias|fc\.weight|fc\.bias)": "a classifier"}
HF_CLASSIFIER = {r"classifier\.(weight|bias)": "a classifier"}
POOLER = {r"pooler\.dense\.(weight|bias)": "a pooler, which DINO does not have"}

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "official_v1",
            "dino",
            official.V1,
            marks=(r"pos_embed", r"blocks\.0\.norm1\.weight"),
            never=(r".*\.ls1\.gamma", r"mask_token", r"reg_token", r"register_tokens"),
            skipped=CLASSIFIER,
            options=SHIFTED,
        ),
        Layout(
            "official_v2",
            "dinov2",
            official.V2,
            # Without any of these, it has the names of timm's.
            marks=(r"pos_embed", r"mask_token|register_tokens|blocks\.0\.mlp\.w12\.weight"),
            skipped=CLASSIFIER,
        ),
        Layout(
            "official_v3",
            "dinov3",
            official.V3,
            marks=(r"rope_embed\.periods", r"blocks\.0\.norm1\.weight"),
            buffers={r"rope_embed.periods": rope_periods, r"blocks.{i}.attn.qkv.bias_mask": bias_mask},
            skipped=CLASSIFIER,
        ),
        Layout(
            "official_convnext",
            "convnext",
            official.CONVNEXT,
            marks=(r"downsample_layers\.0\.0\.weight",),
            skipped=CLASSIFIER,
        ),
        Layout(
            "official_resnet",
            "resnet",
            official.RESNET,
            marks=(r"conv1\.weight", r"layer1\.0\.conv1\.weight"),
            kept=BATCHES,
            skipped={r"fc\.(weight|bias)": "a classifier"},
        ),
        Layout(
            "hf_dino",
            "dino",
            hugging_face.DINO,
            marks=(r"encoder\.layer\.0\.layernorm_before\.weight",),
            skipped=POOLER | HF_CLASSIFIER,
            options=BY_SIZE,
        ),
        Layout(
            "hf_dinov2",
            "dinov2",
            hugging_face.DINOV2,
            marks=(r"encoder\.layer\.0\.norm1\.weight",),
            never=(r"embeddings\.register_tokens",),
            skipped=HF_CLASSIFIER,
            options=BY_SIZE,
        ),
        Layout(
            "hf_dinov2_registers",
            "dinov2",
            hugging_face.DINOV2,
            marks=(r"encoder\.layer\.0\.norm1\.weight", r"embeddings\.register_tokens"),
            skipped=HF_CLASSIFIER,
            options=BY_SIZE_ANTIALIASED,
        ),
        Layout(
            "hf_dinov3",
            "dinov3",
            hugging_face.DINOV3,
            marks=(r"layer\.0\.attention\.q_proj\.weight",),
            skipped=HF_CLASSIFIER,
        ),
        Layout(
            "hf_convnext",
            "convnext",
            hugging_face.CONVNEXT,
            marks=(r"stages\.0\.downsample_layers\.0\.weight",),
            skipped=HF_CLASSIFIER,
        ),
        Layout(
            "timm_dino",
            "dino",
            timm.DINO,
            marks=(r"pos_embed", r"blocks\.0\.norm1\.weight"),
            never=(r".*\.ls1\.gamma", r"mask_token", r"reg_token", r"register_tokens"),
            skipped=CLASSIFIER,
            options=BY_SIZE_ANTIALIASED,
        ),
        Layout(
            "timm_dinov2",
            "dinov2",
            timm.DINOV2,
            marks=(r"pos_embed", r"blocks\.0\.ls1\.gamma"),
            never=(r"mask_token", r"reg_token"),
            skipped=CLASSIFIER,
            options=BY_SIZE_ANTIALIASED,
        ),
        Layout(
            "timm_dinov2_registers",
            "dinov2",
            timm.DINOV2_REGISTERS,
            marks=(r"pos_embed", r"reg_token"),
            skipped=CLASSIFIER,
            options=BY_SIZE_ANTIALIASED,
        ),
        Layout(
            "timm_dinov3",
            "dinov3",
            timm.DINOV3,
            marks=(r"reg_token|cls_token", r"blocks\.0\.gamma_1"),
            skipped=CLASSIFIER,
        ),
        Layout(
            "timm_convnext",
            "convnext",
            timm.CONVNEXT,
            marks=(r"stem\.0\.weight", r"stages\.0\.blocks\.0\.conv_dw\.weight"),
            skipped=CLASSIFIER,
        ),
    )
}
# timm uses torchvision's names.
LAYOUTS["timm_resnet"] = dataclasses.replace(LAYOUTS["official_resnet"], name="timm_resnet")


def recognise(names: list[str], *, whose: str | None = None) -> Layout:
    """Returns the layout of a checkpoint with these tensor names.

    Args:
      whose: "official", "hf" or "timm" where that is known; DINO's own and timm's names are the same.

    Raises:
      ValueError: if it looks like none.
    """
    for layout in LAYOUTS.values():
        if whose in (None, layout.whose) and layout.matches(names):
            return layout
    shown = ", ".join(names[:3]) or "none at all"
    raise ValueError(
        f"these tensors are of no known layout ({len(names)} names, such as {shown}): known are {', '.join(LAYOUTS)}"
    )
