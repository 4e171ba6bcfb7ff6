"""Counted operations against XLA's own count, and the sum of a step by hand."""

import jax
import jax.numpy as jnp
import pytest

from dino_jax import build, config, flops
from dino_jax.models import VARIANTS, ConvNext, PrototypeHead, ResNet, VisionTransformer
from dino_jax.models import build as build_model
from tests.tiny_recipe import get_config

OPTIONS = VARIANTS["dinov3_vits16"] | {"patch_size": 8, "width": 64, "heads": 2}


def counted_by_xla(module, inputs) -> float:
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs))
    analysis = jax.jit(lambda v, x: module.apply(v, x)).lower(variables, inputs).cost_analysis()
    return float(analysis["flops"])


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_a_block_and_the_patches(ffn):
    """XLA counts a scan's body once, and element-wise operations too: 3 % at this width."""
    model = VisionTransformer(**OPTIONS | {"depth": 1, "ffn": ffn})
    expected = counted_by_xla(model, {"global": jnp.zeros((1, 64, 64, 3))})
    assert 0.95 * expected < flops.backbone_flops(model, 64) < expected


def test_a_convnext():
    """Of one block in each stage, which XLA counts in full; what it counts beside products is 9 % at these widths."""
    model = ConvNext(depths=(1, 1, 1), widths=(32, 64, 128), layer_scale=0.1, in_channels=3)
    expected = counted_by_xla(model, {"global": jnp.zeros((1, 64, 64, 3))})
    assert 0.9 * expected < flops.backbone_flops(model, 64) < expected
    deeper = model.clone(depths=(1, 3, 1))
    added = flops.backbone_flops(deeper, 64) - flops.backbone_flops(model, 64)
    assert added == 2 * 2 * 8 * 8 * (49 * 64 + 8 * 64**2)


@pytest.mark.parametrize("side", [256, 300])
def test_a_resnet(side):
    """XLA counts norms and the like too, 1 % at these sizes, and leaves out what multiplies the padding, as much."""
    model = ResNet(depths=(2, 1, 2), channels=32, in_channels=3)
    expected = counted_by_xla(model, {"global": jnp.zeros((1, side, side, 3))})
    assert flops.backbone_flops(model, side) == pytest.approx(expected, rel=0.005)


def test_the_published_count_of_a_resnet50():
    """4.09 billion multiply-adds at 224 pixels, as torchvision states."""
    assert flops.backbone_flops(build_model("dino_resnet50"), 224) == pytest.approx(2 * 4.09e9, rel=0.003)


def test_stochastic_depth_leaves_blocks_out():
    model = VisionTransformer(**OPTIONS | {"depth": 4})
    whole, none = flops.backbone_flops(model, 64), flops.backbone_flops(model, 64, kept=0.0)
    assert none == 2 * 64 * 8 * 8 * 3 * 64  # the embedding of 64 patches
    assert flops.backbone_flops(model, 64, kept=0.7) == pytest.approx(none + 0.7 * (whole - none))


def test_a_head():
    head = PrototypeHead(prototypes=256, hidden=128, bottleneck=32)
    expected = counted_by_xla(head, jnp.zeros((1, 64)))
    assert 0.97 * expected < flops.head_flops(head, 64) < expected


def test_a_step_by_hand():
    """Students count three times, forward and backward; teachers once; masked patches go through the iBOT heads."""
    c = get_config()
    phase = config.following(c.phases.gram, masks={"probability": 0.5, "ratio": (0.25, 0.75)})
    networks = build.networks(c, shards=1)
    model, dino, ibot = networks.backbone, networks.dino_head, networks.ibot_head
    full, half, double = (flops.backbone_flops(model, side, kept=0.5) for side in (32, 16, 64))
    plain, large = flops.backbone_flops(model, 32), flops.backbone_flops(model, 64)
    assert double < large and half < full < plain
    masked = 2 * 0.5 * 0.5 * 16  # of two global crops of 16 patches
    to_dino, to_ibot = flops.head_flops(dino, model.width), masked * flops.head_flops(ibot, model.width)
    student = 2 * full + 2 * half + 4 * to_dino + to_ibot
    teacher = 2 * plain + 2 * to_dino + to_ibot
    assert flops.train_flops_per_image(networks, phase) == pytest.approx(3 * student + teacher + 2 * large)


def test_of_several_sizes_the_mean():
    networks, phase = build.networks(get_config(), shards=1), get_config().phases.gram
    small = flops.train_flops_per_image(networks, phase)
    large = flops.train_flops_per_image(networks, config.following(phase, crops={"global_size": 64}))
    mixed = config.following(phase, crops={"mixture": ((0.25, 64, 16, 64),)})
    assert flops.train_flops_per_image(networks, mixed) == pytest.approx(0.75 * small + 0.25 * large)
