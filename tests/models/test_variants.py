"""The published sizes have exactly the published numbers of parameters (computed from shapes, nothing is allocated)."""

import math

import jax
import jax.numpy as jnp
import pytest

from dino_jax.models import CONVNEXT_VARIANTS, VARIANTS, ConvNext, VisionTransformer

# width, depth, hidden width of the feed-forward, number of its matrices, qkv bias, separate norm of local crops
SIZES = {
    "dinov3_vits16": (384, 12, 1536, 2, True, False),
    "dinov3_vits16plus": (384, 12, 1536, 3, True, False),
    "dinov3_vitb16": (768, 12, 3072, 2, True, False),
    "dinov3_vitl16": (1024, 24, 4096, 2, True, False),
    "dinov3_vith16plus": (1280, 32, 5120, 3, True, False),
    "dinov3_vit7b16": (4096, 40, 8192, 3, False, True),
}
# What `released` must give: exactly, of two public checkpoints, and in millions.
RELEASED = {"dinov3_vitl16": 303_129_600, "dinov3_vit7b16": 6_716_035_072}
MILLIONS = {
    "dinov3_vits16": 21.6,
    "dinov3_vits16plus": 28.7,
    "dinov3_vitb16": 85.7,
    "dinov3_vitl16": 303.1,
    "dinov3_vith16plus": 840.6,
    "dinov3_vit7b16": 6716.0,
}
PATCH, CHANNELS, REGISTERS = 16, 3, 4
# depths, width of the first stage (it doubles), parameters
CONVNEXT_SIZES = {
    "dinov3_convnext_tiny": ((3, 3, 9, 3), 96, 27_820_128),
    "dinov3_convnext_small": ((3, 3, 27, 3), 96, 49_454_688),
    "dinov3_convnext_base": ((3, 3, 27, 3), 128, 87_566_464),
    "dinov3_convnext_large": ((3, 3, 27, 3), 192, 196_230_336),
}


def by_hand(width, depth, hidden, matrices, qkv_bias, local_norm) -> int:
    """Counts a transformer's parameters: patch embedding, tokens, blocks, final norms."""
    embed = PATCH**2 * CHANNELS * width + width
    tokens = width * (1 + REGISTERS + 1)  # CLS, registers, mask token
    attention = 3 * width**2 + 3 * width * qkv_bias + width**2 + width
    ffn = matrices * width * hidden + (matrices - 1) * hidden + width
    norms_and_scales = 2 * 2 * width + 2 * width
    return embed + tokens + depth * (attention + ffn + norms_and_scales) + 2 * width * (1 + local_norm)


def count(variant: str) -> int:
    convolutional = variant in CONVNEXT_VARIANTS
    model = ConvNext(**CONVNEXT_VARIANTS[variant]) if convolutional else VisionTransformer(**VARIANTS[variant])
    image = jax.ShapeDtypeStruct((1, model.patch_size, model.patch_size, CHANNELS), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"global": image})["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def released(variant: str) -> int:
    """Counts as the released files do, which hold neither the key biases (zero) nor the norm of local crops."""
    width, depth, *_, qkv_bias, local_norm = SIZES[variant]
    return count(variant) - depth * width * qkv_bias - 2 * width * local_norm


@pytest.mark.parametrize("variant", SIZES)
def test_parameter_count(variant):
    assert count(variant) == by_hand(*SIZES[variant])
    assert round(released(variant) / 1e6, 1) == MILLIONS[variant]
    assert released(variant) == RELEASED.get(variant, released(variant))


def convnext_by_hand(depths, width) -> int:
    """Counts a ConvNeXt's parameters: stem, blocks, down-sampling, final norm."""
    widths = [width * 2**i for i in range(len(depths))]
    stem = 4 * 4 * CHANNELS * width + width + 2 * width
    # Depthwise kernel and bias, norm, the two linear layers, LayerScale.
    blocks = sum(d * (7 * 7 * w + w + 2 * w + 8 * w**2 + 4 * w + w + w) for d, w in zip(depths, widths, strict=True))
    shrinking = sum(2 * w + 2 * 2 * w * 2 * w + 2 * w for w in widths[:-1])
    return stem + blocks + shrinking + 2 * widths[-1]


@pytest.mark.parametrize("variant", CONVNEXT_VARIANTS)
def test_convnext_parameter_count(variant):
    *sizes, expected = CONVNEXT_SIZES[variant]
    assert count(variant) == convnext_by_hand(*sizes) == expected


def test_every_published_size_is_counted():
    assert set(SIZES) == set(MILLIONS)
    assert set(CONVNEXT_SIZES) == set(CONVNEXT_VARIANTS)
