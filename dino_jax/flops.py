"""Counts the floating-point operations of the matrix products of a training step, for MFU and planning."""

import itertools
import math

from ml_collections import ConfigDict

from dino_jax.data.crops import GLOBAL_NUMBER
from dino_jax.models import Backbone, ConvNext, PrototypeHead, ResNet, VisionTransformer
from dino_jax.models.resnet import EXPANSION
from dino_jax.phases import by_size
from dino_jax.state import Networks


def backbone_flops(model: Backbone, side: int, *, kept: float = 1.0) -> float:
    """Returns the forward FLOPs of one square image of `side` pixels (two per multiply-add).

    Args:
      kept: share of the samples that a residual branch runs on, below 1 with batch-subset stochastic depth, before it
        is rounded (`layers.aligned`).
    """
    if isinstance(model, ConvNext):
        return _convnext_flops(model, side)
    if isinstance(model, ResNet):
        return _resnet_flops(model, side)
    assert isinstance(model, VisionTransformer)
    patches = (side // model.patch_size) ** 2
    tokens = model.token_count(side)
    ffn_products = 3 if model.ffn == "swiglu" else 2
    per_token = 4 * model.width**2 + ffn_products * model.width * model.hidden
    attention = 2 * tokens**2 * model.width
    embed = patches * model.patch_size**2 * model.in_channels * model.width
    return 2.0 * (model.depth * kept * (tokens * per_token + attention) + embed)


def _convnext_flops(model: ConvNext, side: int) -> float:
    """Counts the convolutions that shrink the map, and of each block the depthwise one and the MLP."""
    flops, channels = 0.0, model.in_channels
    for stage, (width, depth) in enumerate(zip(model.widths, model.depths, strict=True)):
        shrinking = (4 if stage == 0 else 2) ** 2 * channels * width
        positions = math.prod(model.grid((side, side), stage))
        flops += 2.0 * positions * (shrinking + depth * (7**2 * width + 2 * 4 * width**2))
        channels = width
    return flops


def _resnet_flops(model: ResNet, side: int) -> float:
    """Counts the convolutions: the stem, three in each bottleneck, and the one beside the first of a stage."""
    channels = model.channels
    products = math.ceil(side / 2) ** 2 * 7**2 * model.in_channels * channels
    positions = math.prod(model.grid((side, side), 0))
    for stage, depth in enumerate(model.depths):
        width, before = model.channels * 2**stage, positions
        positions = math.prod(model.grid((side, side), stage))
        products += before * channels * width + positions * channels * EXPANSION * width
        channels = EXPANSION * width
        products += positions * (depth * (3**2 * width**2 + width * channels) + (depth - 1) * channels * width)
    return 2.0 * products


def head_flops(head: PrototypeHead, width: int) -> float:
    """Returns the forward FLOPs of a head on one token."""
    widths = [width] + [head.hidden] * (head.mlp_layers - 1) + [head.bottleneck, head.prototypes]
    return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))


def train_flops_per_image(networks: Networks, options: ConfigDict) -> float:
    """Returns the FLOPs that training on one image needs: student forward and backward (3x), teachers forward.

    Recomputation is not counted, so that MFU is the useful share. Of several sizes of crops it is the mean.
    """
    return sum(share * _train_flops_per_image(networks, sized) for share, sized in by_size(options))


def _train_flops_per_image(networks: Networks, options: ConfigDict) -> float:
    model, crops = networks.backbone, options.crops
    kept = 1.0 if getattr(model, "drop_path_ramp", False) else 1.0 - getattr(model, "drop_path", 0.0)
    views = GLOBAL_NUMBER
    student = views * backbone_flops(model, crops.global_size, kept=kept)
    student += crops.local_number * backbone_flops(model, crops.local_size, kept=kept)
    teacher = views * backbone_flops(model, crops.global_size)
    gram_size = options.gram.crop_size or crops.global_size
    gram = views * backbone_flops(model, gram_size) if options.gram.teacher != "none" else 0
    patches = (crops.global_size // model.patch_size) ** 2
    masked = bool(options.loss.ibot) * views * options.masks.probability * sum(options.masks.ratio) / 2 * patches
    dino, ibot = (head_flops(h, model.width) for h in (networks.dino_head, networks.ibot_head or networks.dino_head))
    student += (views + crops.local_number) * dino + masked * ibot
    teacher += views * dino + masked * ibot
    return 3 * student + teacher + gram
