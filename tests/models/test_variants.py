"""The published sizes have exactly the published numbers of parameters (computed from shapes, nothing is allocated)."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from dino_jax.models import VARIANTS, VIT_VARIANTS, build

# Those of the released checkpoints, as transformers' and torchvision's models count them (without their classifiers).
RELEASED = {
    "dino_vits16": 21_665_664,
    "dino_vits8": 21_670_272,
    "dino_vitb16": 85_798_656,
    "dino_vitb8": 85_807_872,
    "dino_resnet50": 23_508_032,
    "dinov2_vits14": 22_056_576,
    "dinov2_vitb14": 86_580_480,
    "dinov2_vitl14": 304_368_640,
    "dinov2_vitg14": 1_136_480_768,
    "dinov2_vits14_reg": 22_058_112,
    "dinov2_vitb14_reg": 86_583_552,
    "dinov2_vitl14_reg": 304_372_736,
    "dinov2_vitg14_reg": 1_136_486_912,
    "dinov3_vits16": 21_596_544,
    "dinov3_vits16plus": 28_692_864,
    "dinov3_vitb16": 85_660_416,
    "dinov3_vitl16": 303_129_600,
    "dinov3_vith16plus": 840_592_640,
    "dinov3_vit7b16": 6_716_035_072,
    "dinov3_convnext_tiny": 27_820_128,
    "dinov3_convnext_small": 49_454_688,
    "dinov3_convnext_base": 87_566_464,
    "dinov3_convnext_large": 196_230_336,
}


def unreleased(variant: str) -> int:
    """Counts what only training has: key biases held at zero, and the norm of local crops."""
    options = VARIANTS[variant]
    key_biases = options["depth"] * options["width"] * (options["qkv_bias"] and options.get("mask_key_bias", False))
    return key_biases + 2 * options["width"] * options.get("untie_global_and_local_norms", False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count(variant):
    model = build(variant)
    image = jax.ShapeDtypeStruct((1, model.patch_size, model.patch_size, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), {"global": image})["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == RELEASED[variant] + (unreleased(variant) if variant in VIT_VARIANTS else 0)


def test_every_published_size_is_counted():
    assert set(RELEASED) == set(VARIANTS)


@pytest.mark.parametrize("variant", VIT_VARIANTS)
def test_positions_are_either_learned_or_rotary(variant):
    assert ("pos_grid" in VARIANTS[variant]) != ("rope_base" in VARIANTS[variant])
