"""First layers for other numbers of channels, against timm."""

import jax
import numpy as np
import pytest

from dino_jax.models import build, inflate_patch_embed
from tests.torch_libraries import library

NAMES = ("dinov2_vits14", "dinov3_convnext_tiny", "dino_resnet50")
SMALL = {
    "dinov2_vits14": {"width": 16, "depth": 1, "heads": 2, "pos_grid": 2},
    "dinov3_convnext_tiny": {"depths": (1,), "widths": (8,)},
    "dino_resnet50": {"depths": (1,), "channels": 4},
}


def init(name: str, in_channels: int) -> dict:
    model = build(name, in_channels=in_channels, **SMALL[name])
    images = np.zeros((1, 28, 28, in_channels), np.float32)
    return jax.jit(model.init)(jax.random.key(0), {"global": images})


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 7, 13])
def test_equals_timm(in_channels):
    torch, timm = library("torch"), library("timm")
    adapt = timm.models.adapt_input_conv
    kernel = np.random.default_rng(0).normal(size=(5, 5, 3, 6)).astype(np.float32)
    expected = adapt(in_channels, torch.from_numpy(kernel.transpose(3, 2, 0, 1))).numpy().transpose(2, 3, 1, 0)
    out = inflate_patch_embed({"patch_embed": {"kernel": kernel}}, in_channels)["patch_embed"]["kernel"]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_equal_channels_give_what_red_green_and_blue_gave(name):
    """Every network: parameters fit, and a grey image has the same features in three and in six channels."""
    variables = init(name, 3)
    inflated = variables | {"params": inflate_patch_embed(variables["params"], 6)}
    assert jax.tree.map(np.shape, inflated) == jax.tree.map(np.shape, jax.eval_shape(lambda: init(name, 6)))
    grey = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    first, second = (
        jax.jit(build(name, in_channels=channels, **SMALL[name]).apply)(
            weights, {"global": np.repeat(grey, channels, axis=-1)}
        )["global"]["patches"]
        for channels, weights in ((3, variables), (6, inflated))
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_the_original_is_not_changed():
    params = init("dinov2_vits14", 3)["params"]
    before = params["patch_embed"]["kernel"]
    assert inflate_patch_embed(params, 3)["patch_embed"]["kernel"] is before
    inflate_patch_embed(params, 5)
    assert params["patch_embed"]["kernel"] is before


def test_bad_arguments():
    with pytest.raises(ValueError, match="no first convolution among mlp_0"):
        inflate_patch_embed({"mlp_0": {}}, 5)
    with pytest.raises(ValueError, match="in_channels = 0 must be at least 1"):
        inflate_patch_embed({"patch_embed": {}}, 0)
