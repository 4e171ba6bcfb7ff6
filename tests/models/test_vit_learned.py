"""The transformer with learned positions: DINO and DINOv2 against the references' outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.models import VisionTransformer, intermediate_layers, last_attention, layers
from dino_jax.models.readout import last_keys
from dino_jax.models.variants import DINO, DINOV2
from tests.conftest import golden_names
from tests.torch_weights import assert_close, assert_trees_close, by_block, sum_tolerance, tree

# Largest errors relative to each array's scale, a few float32 roundings per block: 2.7e-6 and 2.5e-6 were the most in
# 45 networks. An epsilon of 1e-5 for one of 1e-6 changes these outputs by 1.2e-5 or more.
FORWARD, GRADIENT = 8e-6, 1e-5
DINO_GOLDENS, DINOV2_GOLDENS = golden_names("v1vit_*.npz"), golden_names("v2vit_*.npz")
OUTPUTS = {
    "cls": "x_norm_clstoken",
    "registers": "x_norm_regtokens",
    "patches": "x_norm_patchtokens",
    "prenorm": "x_prenorm",
}


def dino(config: dict) -> VisionTransformer:
    """Builds our model from the options of DINO's."""
    return VisionTransformer(
        **DINO
        | {
            "patch_size": config["patch_size"],
            "pos_grid": config["img_size"][0] // config["patch_size"],
            "width": config["embed_dim"],
            "depth": config["depth"],
            "heads": config["num_heads"],
            "ffn_ratio": config["mlp_ratio"],
            "norm_epsilon": config["norm_eps"],
            "qkv_bias": config["qkv_bias"],
        }
    )


def dinov2(config: dict) -> VisionTransformer:
    """Builds our model from the options of DINOv2's."""
    return VisionTransformer(
        **DINOV2
        | {
            "patch_size": config["patch_size"],
            "pos_grid": config["img_size"] // config["patch_size"],
            "pos_offset": config["interpolate_offset"],
            "pos_antialias": config["interpolate_antialias"],
            "width": config["embed_dim"],
            "depth": config["depth"],
            "heads": config["num_heads"],
            "registers": config["num_register_tokens"],
            "ffn": {"mlp": "mlp", "swiglu": "swiglu", "swiglufused": "swiglu"}[config["ffn_layer"]],
            "ffn_ratio": config["mlp_ratio"],
            "layer_scale": config["init_values"] or 0.0,
            "qkv_bias": config["qkv_bias"],
            "proj_bias": config["proj_bias"],
            "ffn_bias": config["ffn_bias"],
            "in_channels": config["in_chans"],
        }
    )


def from_reference(name: str, config: dict) -> VisionTransformer:
    return dino(config) if name.startswith("v1") else dinov2(config)


def images_of(g) -> dict[str, np.ndarray]:
    """Returns the stored images by size, channels last."""
    sizes = [name.split("/")[1] for name in g if name.endswith("/image")]
    assert sizes
    return {size: g[f"in/{size}/image"].transpose(0, 2, 3, 1) for size in sizes}


@pytest.mark.golden
@pytest.mark.parametrize("name", DINO_GOLDENS + DINOV2_GOLDENS)
def test_positions(golden, name):
    g = golden(name)
    model, params = from_reference(name, g.config), tree(g.under("param/"))
    for size, images in images_of(g).items():
        positions = model.apply({"params": params}, images.shape[1:3], method="learned_positions")
        assert_close(positions, g[f"out/{size}/pos_embed"][0], relative=4e-6, name=size)


@pytest.mark.golden
@pytest.mark.parametrize("name", DINOV2_GOLDENS)
def test_dinov2_forward(golden, name):
    """All sizes, one of them also masked, as groups of one call: one compilation."""
    g = golden(name)
    model, params = dinov2(g.config), tree(g.under("param/"))
    groups = {f"{size}/nomask": images for size, images in images_of(g).items()}
    masks = {name.removeprefix("in/"): g[name] for name in g if name.endswith("/mask")}
    groups |= {case: groups[case.replace("/mask", "/nomask")] for case in masks}
    out = jax.jit(lambda p, x, m: model.apply({"params": p}, x, m))(params, groups, masks)
    compared = 0
    for case in groups:
        for ours, theirs in OUTPUTS.items():
            if f"out/{case}/{theirs}" in g:
                assert_close(out[case][ours], g[f"out/{case}/{theirs}"], relative=FORWARD, name=f"{case}/{ours}")
                compared += 1
    assert compared == len([n for n in g if n.startswith("out/") and "/x_" in n])


@pytest.mark.golden
@pytest.mark.parametrize("name", DINOV2_GOLDENS)
def test_dinov2_intermediate_layers(golden, name):
    g = golden(name)
    model, params = dinov2(g.config), tree(g.under("param/"))
    size = next(name.split("/")[1] for name in g if name.endswith("/mask"))
    run = jax.jit(lambda p, x: intermediate_layers(model, p, x, [-2, -1]))
    for index, out in enumerate(run(params, images_of(g)[size])):
        for ours, theirs in {"cls": "cls", "patches": "patch"}.items():
            expected = g[f"out/{size}/intermediate_n2_norm/{index}/{theirs}"]
            assert_close(out[ours], expected, relative=FORWARD, name=f"{index}/{ours}")


@pytest.mark.golden
@pytest.mark.parametrize("name", DINO_GOLDENS)
def test_dino_forward(golden, name):
    """The last two blocks after the norm; the CLS token of the last is what the model returns."""
    g = golden(name)
    model, params = dino(g.config), tree(g.under("param/"))
    run = jax.jit(lambda p, x: intermediate_layers(model, p, x, [-2, -1]))
    for size, images in images_of(g).items():
        for index, out in enumerate(run(params, images)):
            whole = np.concatenate([out["cls"][:, None], out["patches"]], axis=1)
            assert_close(whole, g[f"out/{size}/intermediate_n2/{index}"], relative=FORWARD, name=f"{size}/{index}")
        assert_close(out["cls"], g[f"out/{size}/cls"], relative=FORWARD, name=f"{size}/cls")


@pytest.mark.golden
@pytest.mark.parametrize("name", DINO_GOLDENS)
def test_dino_last_attention(golden, name):
    g = golden(name)
    model, params = dino(g.config), tree(g.under("param/"))
    run = jax.jit(lambda p, x: last_attention(model, p, x))
    stored = [name for name in g if name.endswith("last_selfattention")]
    assert stored
    for attention in stored:
        images = images_of(g)[attention.split("/")[1]]
        assert_close(run(params, images), g[attention], relative=FORWARD, name=attention)


@pytest.mark.golden
@pytest.mark.parametrize("name", DINO_GOLDENS + DINOV2_GOLDENS)
def test_gradients(golden, name):
    g = golden(name)
    model, params = from_reference(name, g.config), tree(g.under("param/"))
    height, width = g["in/grad_HW"]
    images = images_of(g)[f"{height}x{width}"]
    cotangents = g.under("in/grad_cotangent/") or {"x_norm_clstoken": g["in/grad_cotangent"]}

    def products(out):
        return [(out[ours], cotangents[theirs]) for ours, theirs in OUTPUTS.items() if theirs in cotangents]

    @jax.jit
    def scalar(p):
        out = model.apply({"params": p}, {"global": images}, train=True)["global"]
        return sum(jnp.sum(x * cotangent) for x, cotangent in products(out)), out

    (value, out), grads = jax.value_and_grad(scalar, has_aux=True)(params)
    assert_close(value, g["out/grad_scalar"], absolute=sum_tolerance(products(out)))
    grads, expected = jax.tree.map(np.asarray, grads), tree(g.under("grad/"))
    if model.masking:  # without a mask the reference has no gradient for its token
        np.testing.assert_array_equal(grads.pop("mask_token"), 0)
    assert_trees_close(by_block(grads), by_block(expected), relative=GRADIENT)


@pytest.fixture(scope="module")
def small():
    sizes = {"patch_size": 4, "pos_grid": 4, "width": 32, "depth": 3, "heads": 2, "registers": 2, "layer_scale": 0.5}
    model = VisionTransformer(**DINOV2 | sizes)
    images = jax.random.normal(jax.random.key(0), (4, 16, 24, 3))
    return model, jax.jit(model.init)(jax.random.key(1), {"global": images})["params"], images


def test_parameters(small):
    model, params, images = small
    assert params["pos_embed"].shape == (17, 32)
    assert params["pos_embed"].std() == pytest.approx(0.02, rel=0.2)
    without = jax.eval_shape(model.clone(masking=False).init, jax.random.key(0), {"global": images})["params"]
    assert set(params) - set(without) == {"mask_token"}


def test_only_patches_and_cls_have_positions(small):
    model, params, images = small
    elsewhere = params | {"pos_embed": params["pos_embed"] + 1.0}
    before, after = (model.apply({"params": p}, images, method="embed") for p in (params, elsewhere))
    moved = np.array(after - before).mean((0, 2))
    np.testing.assert_allclose(moved, [1, 0, 0] + [1] * 24, atol=1e-6)


def test_masked_patches_keep_their_positions(small):
    """The mask token replaces what a patch shows, not where it is."""
    model, params, images = small
    everything = jnp.ones((4, 24), bool)
    x = model.apply({"params": params}, images, everything, method="embed")
    positions = model.apply({"params": params}, (16, 24), method="learned_positions")
    np.testing.assert_allclose(x[:, 3:], np.broadcast_to(params["mask_token"] + positions[1:], (4, 24, 32)), atol=1e-6)


def test_masks_without_mask_token_are_refused(small):
    model, params, images = small
    with pytest.raises(ValueError, match="masks need a mask token"):
        model.clone(masking=False).apply({"params": params}, {"global": images}, {"global": jnp.ones((4, 24), bool)})


def test_drop_path_rises_with_depth(small):
    """The first block never skips; of the last, about the given share of samples skips."""
    model, params, _ = small
    # Both branches of every block add a constant, so a token counts the branches that ran.
    zeros = jax.tree.map(jnp.zeros_like, params)
    for branch, name in (("attn", "proj"), ("mlp", "fc2")):
        zeros["blocks"][branch][name]["bias"] = jnp.ones((3, 32))
    zeros["blocks"] |= {scale: {"gamma": jnp.ones((3, 32))} for scale in ("ls1", "ls2")}
    noisy = model.clone(drop_path=0.5, drop_path_ramp=True, remat="full")
    images = jnp.zeros((2000, 4, 4, 3))
    out = jax.jit(
        lambda p, key: noisy.apply(
            {"params": p}, {"global": images}, train=True, collect=True, rngs={"drop_path": key}
        )["global"]["blocks"]
    )(zeros, jax.random.key(0))
    added = np.diff(np.asarray(out[:, :, 0, 0]), axis=0, prepend=0)
    np.testing.assert_allclose(added[0], 2)
    # Rates 0, 1/4, 1/2: 0, 1 or 2 branches ran, each worth 1 / (1 - rate).
    for block, rate in ((1, 0.25), (2, 0.5)):
        ran = added[block] * (1 - rate)
        assert set(np.round(ran, 5)) == {0.0, 1.0, 2.0}
        assert ran.mean() == pytest.approx(2 * (1 - rate), abs=0.06)
        assert np.mean(ran == 0) == pytest.approx(rate**2, abs=0.04)


def test_residual_per_sample_by_hand():
    x = jnp.arange(4.0).reshape(4, 1, 1)
    out = layers.residual_per_sample(lambda y: y, x, jax.random.key(0), rate=0.0)
    np.testing.assert_array_equal(out, 2 * x)
    out = layers.residual_per_sample(lambda y: y, x, jax.random.key(0), rate=0.75)
    assert set((out / jnp.maximum(x, 1))[1:, 0, 0].tolist()) <= {1.0, 5.0}


def test_two_kinds_of_positions_are_refused(small):
    model, _, images = small
    with pytest.raises(ValueError, match=r"pos_grid = 4 excludes rope_base = 100\.0"):
        model.clone(rope_base=100.0).init(jax.random.key(0), {"global": images})
    with pytest.raises(ValueError, match="rope_base"):
        model.clone(pos_grid=0).init(jax.random.key(0), {"global": images})


@pytest.mark.parametrize("depth", [1, 3])
def test_last_keys_by_hand(small, depth):
    """The middle third of qkv, bias included, of the last block's input; CLS and registers are left out."""
    model, params, images = small
    rng = np.random.default_rng(0)
    params = params | {"blocks": jax.tree.map(lambda x: x[:depth] + rng.normal(size=x[0].shape), params["blocks"])}
    model = model.clone(depth=depth)
    last = jax.tree.map(lambda x: x[-1], params["blocks"])

    @jax.jit
    def run(params):
        blocks = model.apply({"params": params}, {"global": images}, collect=True)["global"]["blocks"]
        x = blocks[-2] if depth > 1 else model.apply({"params": params}, images, method="embed")
        return last_keys(model, params, images), x

    keys, x = run(params)
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + model.norm_epsilon)
    x = x * last["norm1"]["scale"] + last["norm1"]["bias"]
    qkv = x @ last["attn"]["qkv"]["kernel"] + last["attn"]["qkv"]["bias"]
    assert keys.shape == (4, 24, 32)
    assert_close(keys, qkv[:, 3:, 32:64], relative=FORWARD)
