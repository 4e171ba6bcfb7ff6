"""The v3 ConvNeXt against the reference's outputs and gradients, cases by hand, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax import sharding
from dino_jax.models import CONVNEXT_VARIANTS, ConvNext, intermediate_stages
from tests.conftest import golden_names
from tests.torch_weights import assert_close, assert_trees_close, by_block, convnext_tree, sum_tolerance

# Largest errors relative to each array's scale, a few float32 roundings per block: 8e-7 and 1.7e-6 were the most in 12
# networks.
FORWARD, GRADIENT = 3e-6, 1e-5
GOLDENS = golden_names("v3convnext_*.npz")
OUTPUTS = {"cls": "x_norm_clstoken", "patches": "x_norm_patchtokens", "prenorm": "x_prenorm"}


def from_reference(config: dict) -> ConvNext:
    """Builds our model from the options of a reference one."""
    return ConvNext(
        depths=tuple(config["depths"]),
        widths=tuple(config["dims"]),
        layer_scale=config["layer_scale_init_value"],
        in_channels=3,
    )


def channels_last(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


def sizes_of(g) -> list[str]:
    """Lists the recorded image sizes, in the file's order."""
    sizes = [name.split("/")[1] for name in g if name.endswith("/image")]
    assert sizes
    return sizes


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDENS)
def test_forward(golden, name):
    """All image sizes, also one that is no multiple of any stride, as groups of one call."""
    g = golden(name)
    model, params = from_reference(g.config), convnext_tree(g.under("param/"))
    groups = {size: channels_last(g[f"in/{size}/image"]) for size in sizes_of(g)}
    out = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, groups)
    for size in groups:
        for ours, theirs in OUTPUTS.items():
            assert_close(out[size][ours], g[f"out/{size}/{theirs}"], relative=FORWARD, name=f"{size}/{ours}")
        assert out[size]["registers"].shape == (len(groups[size]), 0, model.width)


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDENS)
def test_intermediate_stages(golden, name):
    g = golden(name)
    model, params = from_reference(g.config), convnext_tree(g.under("param/"))
    cases = {
        "n1_norm": ([3], True),
        "n2_nonorm_reshape": ([-2, -1], False),
        "all_norm_reshape": ([0, 1, 2, 3], True),
    }

    @jax.jit
    def run(params, images):
        return {
            case: intermediate_stages(model, params, images, wanted, norm=norm, patch_size=g.config["patch_size"])
            for case, (wanted, norm) in cases.items()
        }

    compared = set()
    for size in sizes_of(g):
        out = run(params, channels_last(g[f"in/{size}/image"]))
        for case in cases:
            for index, tokens in enumerate(out[case]):
                stored = g.under(f"out/{size}/intermediate_{case}/{index}/")
                if not stored:  # the last case is recorded at one size only
                    continue
                patches = channels_last(stored["patch"]) if case.endswith("reshape") else stored["patch"]
                assert_close(tokens["cls"], stored["cls"], relative=FORWARD, name=f"{size}/{case}/{index}/cls")
                ours = tokens["patches"].reshape(patches.shape)
                assert_close(ours, patches, relative=FORWARD, name=f"{size}/{case}/{index}/patches")
                compared |= {f"out/{size}/intermediate_{case}/{index}/{kind}" for kind in ("cls", "patch")}
    assert compared == {stored for stored in g if "/intermediate_" in stored}


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDENS)
def test_gradients(golden, name):
    """The scalar belongs to the first size."""
    g = golden(name)
    model, params = from_reference(g.config), convnext_tree(g.under("param/"))
    images = channels_last(g[f"in/{sizes_of(g)[0]}/image"])

    def products(out):
        cotangents = g.under("in/grad_cotangent/")
        return [(out[ours], cotangents[theirs]) for ours, theirs in OUTPUTS.items() if theirs in cotangents]

    @jax.jit
    def scalar(p):
        out = model.apply({"params": p}, {"global": images}, train=True)["global"]
        return sum(jnp.sum(x * cotangent) for x, cotangent in products(out)), out

    (value, out), grads = jax.value_and_grad(scalar, has_aux=True)(params)
    assert_close(value, g["out/grad_scalar"], absolute=sum_tolerance(products(out)))
    actual, expected = by_block(jax.tree.map(np.asarray, grads)), by_block(convnext_tree(g.under("grad/")))
    assert_trees_close(actual, expected, relative=GRADIENT)


@pytest.fixture(scope="module")
def small():
    model = ConvNext(depths=(1, 2), widths=(8, 16), layer_scale=0.5, in_channels=3)
    images = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    return model, jax.jit(model.init)(jax.random.key(1), {"global": images})["params"], images


def test_parameters_are_stacked_and_named_as_elsewhere(small):
    _, params, _ = small
    shapes = jax.tree.map(jnp.shape, params)
    assert set(shapes) == {"stages_0", "stages_1", "norm"}
    assert shapes["stages_0"]["downsample"]["conv"]["kernel"] == (4, 4, 3, 8)
    assert shapes["stages_1"]["downsample"]["norm"]["scale"] == (8,)
    assert shapes["stages_1"]["blocks"] == {
        "depthwise": {"kernel": (2, 7, 7, 1, 16), "bias": (2, 16)},
        "norm": {"scale": (2, 16), "bias": (2, 16)},
        "mlp": {"fc1": {"kernel": (2, 16, 64), "bias": (2, 64)}, "fc2": {"kernel": (2, 64, 16), "bias": (2, 16)}},
        "ls": {"gamma": (2, 16)},
    }


def test_one_block_against_numpy(small):
    """The stem and the first block, convolutions as sums over windows."""
    model, params, images = small
    stage = jax.tree.map(np.asarray, params["stages_0"])
    block = jax.tree.map(lambda x: x[0], stage["blocks"])

    def layer_norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p["bias"]

    patches = np.asarray(images).reshape(2, 4, 4, 6, 4, 3)
    x = np.einsum("bhpwqc,pqcd->bhwd", patches, stage["downsample"]["conv"]["kernel"])
    x = layer_norm(x, stage["downsample"]["norm"])
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = block["depthwise"]["kernel"][:, :, 0]
    y = sum(padded[:, i : i + 4, j : j + 6] * kernel[i, j] for i in range(7) for j in range(7))
    y = layer_norm(y, block["norm"]) @ block["mlp"]["fc1"]["kernel"]
    y = np.asarray(jax.nn.gelu(y, approximate=False)) @ block["mlp"]["fc2"]["kernel"]
    out = model.apply({"params": params}, {"global": images}, collect=True)["global"]["stages"][0]
    np.testing.assert_allclose(out, x + 0.5 * y, atol=1e-5)


def test_groups_are_independent_and_masks_do_nothing(small):
    model, params, images = small
    apply = jax.jit(lambda x, m=None: model.apply({"params": params}, x, m, train=True))
    alone = apply({"global": images})["global"]
    masks = {"global": jnp.ones((2, 6), bool)}
    together = apply({"global": images, "local": images[:, :8, :8]}, masks)
    for name, x in alone.items():
        np.testing.assert_allclose(together["global"][name], x, atol=1e-6)
    assert together["local"]["patches"].shape == (2, 1, 16)
    # A single patch is its own mean.
    np.testing.assert_allclose(together["local"]["cls"], together["local"]["patches"][:, 0], atol=1e-6)


def test_an_image_below_one_patch_is_refused(small):
    model, params, images = small
    with pytest.raises(ValueError, match="below the 8 px of a patch"):
        model.apply({"params": params}, {"global": images[:, :7]})


def test_bfloat16_stays_near_float32(small):
    model, params, images = small
    exact, half = (
        m.apply({"params": params}, {"global": images})["global"]["patches"]
        for m in (model, model.clone(dtype=jnp.bfloat16))
    )
    assert half.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: errors of a few 2**-8 on unit-variance tokens.
    assert np.abs(exact - half.astype(jnp.float32)).max() < 0.1


def test_sharding_covers_every_leaf():
    model = ConvNext(**CONVNEXT_VARIANTS["dinov3_convnext_tiny"])
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"global": image})["params"]
    shardings = sharding.of_state({"backbone": shapes}, sharding.make_mesh(devices=jax.devices()[:1]))["backbone"]
    split = {path: [i for i, axis in enumerate(s.spec) if axis] for path, s in flat(shardings["stages_1"]).items()}
    assert {path: axes for path, axes in split.items() if axes} == {
        "downsample/conv/kernel": [3],
        "blocks/depthwise/kernel": [4],
        "blocks/mlp/fc1/kernel": [1],
        "blocks/mlp/fc2/kernel": [1],
    }


def flat(tree) -> dict:
    return {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
