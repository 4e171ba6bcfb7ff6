"""The v3 transformer against the reference's outputs and gradients, and its own properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.models import VARIANTS, PrototypeHead, VisionTransformer, intermediate_layers, last_attention, rope
from tests.conftest import golden_names
from tests.torch_weights import assert_close, assert_trees_close, by_block, sum_tolerance, tree

# Largest errors relative to each array's scale, a few float32 roundings per block: 1.4e-6 was the most of both in 40
# networks. An epsilon of 1e-5 for one of 1e-6 changes these outputs by 4e-5.
FORWARD, GRADIENT = 5e-6, 1e-5

FFN = {"mlp": ("mlp", 1), "swiglu": ("swiglu", 8)} | {f"swiglu{align}": ("swiglu", align) for align in (32, 64, 128)}
# At random in the reference, so that no numbers can be compared with them.
RANDOM = ["drop_path_rate", *(f"pos_embed_rope_{name}_coords" for name in ("shift", "jitter", "rescale"))]
NORMS = {"layernorm": ("layernorm", 1e-6), "layernormbf16": ("layernorm", 1e-5), "rmsnorm": ("rmsnorm", 1e-5)}


def from_reference(config: dict) -> VisionTransformer:
    """Builds our model from the options of a reference one."""
    norm, epsilon = NORMS[config["norm_layer"]]
    ffn, align = FFN[config["ffn_layer"]]
    assert not any(config[name] for name in RANDOM)
    same = ("patch_size", "ffn_ratio", "qkv_bias", "mask_k_bias", "proj_bias", "ffn_bias", "untie_cls_and_patch_norms")
    renamed = {"mask_k_bias": "mask_key_bias"}
    rope = ("base", "min_period", "max_period")
    return VisionTransformer(
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        registers=config["n_storage_tokens"],
        layer_scale=config["layerscale_init"] or 0.0,
        in_channels=config["in_chans"],
        norm=norm,
        norm_epsilon=epsilon,
        ffn=ffn,
        ffn_align=align,
        untie_global_and_local_norms=config["untie_global_and_local_cls_norm"],
        rope_normalize=config["pos_embed_rope_normalize_coords"],
        **{renamed.get(name, name): config[name] for name in same},
        **{f"rope_{name}": config[f"pos_embed_rope_{name}"] for name in rope},
    )


def channels_last(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


def outputs(config: dict) -> dict[str, str]:
    """Returns our names and the reference's of the tokens that the model has (empty ones are not stored)."""
    names = {"cls": "x_norm_clstoken", "registers": "x_storage_tokens", "patches": "x_norm_patchtokens"}
    if not config["n_storage_tokens"]:
        del names["registers"]
    return names


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v3vit_*.npz"))
def test_forward(golden, name):
    """Square and oblong images, with and without masks, as four groups of one call: one compilation."""
    g = golden(name)
    model, params = from_reference(g.config), tree(g.under("param/"))
    cases = [f"{shape}/{kind}" for shape in ("sq", "rect") for kind in ("nomask", "mask")]
    groups = {case: channels_last(g[f"in/{case.split('/')[0]}/image"]) for case in cases}
    masks = {case: g[f"in/{case}"] for case in cases if case.endswith("/mask")}
    out = jax.jit(lambda p, x, m: model.apply({"params": p}, x, m))(params, groups, masks)
    for case in cases:
        for ours, theirs in (outputs(g.config) | {"prenorm": "x_prenorm"}).items():
            assert_close(out[case][ours], g[f"out/{case}/{theirs}"], relative=FORWARD, name=f"{case}/{ours}")


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v3vit_*.npz"))
def test_intermediate_layers(golden, name):
    g = golden(name)
    model, params = from_reference(g.config), tree(g.under("param/"))

    @jax.jit
    def run(params, images):
        last_two = intermediate_layers(model, params, images, [-2, -1])
        return last_two, intermediate_layers(model, params, images, [0], norm=False)

    stored = {"cls": "cls", "registers": "extra", "patches": "patch"}
    for shape in ("sq", "rect"):
        last_two, (first,) = run(params, channels_last(g[f"in/{shape}/image"]))
        for index, out in enumerate(last_two):
            for ours in outputs(g.config):
                expected = g[f"out/{shape}/intermediate_n2_norm/{index}/{stored[ours]}"]
                assert_close(out[ours], expected, relative=FORWARD, name=f"{shape}/{index}/{ours}")
        expected = channels_last(g[f"out/{shape}/intermediate_block0_nonorm_reshape"])
        assert_close(first["patches"].reshape(expected.shape), expected, relative=FORWARD, name=f"{shape}/block 0")


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "remat"), [(name, "none") for name in golden_names("v3vit_*.npz")] + [("v3vit_c.npz", "full")]
)
def test_training_forward_and_gradients(golden, name, remat):
    g = golden(name)
    model, params = from_reference(g.config).clone(remat=remat), tree(g.under("param/"))
    groups = {
        "global": channels_last(g["in/sq/image"]),
        "local": channels_last(g["in/train/local_image"]),
    }
    masks = {"global": g["in/sq/mask"]}

    @jax.jit
    def scalar(p):
        out = model.apply({"params": p}, groups, masks, train=True)
        return sum(jnp.sum(x * cotangent) for x, cotangent in products(out)), out

    def products(out):
        return [
            (out[group][ours], g[f"in/train/cotangent/{group}/{theirs}"])
            for group in groups
            for ours, theirs in outputs(g.config).items()
            if f"in/train/cotangent/{group}/{theirs}" in g
        ]

    (value, out), grads = jax.value_and_grad(scalar, has_aux=True)(params)
    for group in groups:
        for ours, theirs in (outputs(g.config) | {"prenorm": "x_prenorm"}).items():
            assert_close(out[group][ours], g[f"out/train/{group}/{theirs}"], relative=FORWARD, name=f"{group}/{ours}")
    assert_close(value, g["out/train/scalar"], absolute=sum_tolerance(products(out)))
    actual, expected = by_block(jax.tree.map(np.asarray, grads)), by_block(tree(g.under("grad/")))
    assert_trees_close(actual, expected, relative=GRADIENT)


@pytest.fixture(scope="module")
def small():
    model = VisionTransformer(
        **VARIANTS["dinov3_vits16"]
        | {"patch_size": 4, "width": 32, "depth": 2, "heads": 2, "registers": 2, "layer_scale": 0.5}
    )
    images = jax.random.normal(jax.random.key(0), (4, 16, 24, 3))
    return model, jax.jit(model.init)(jax.random.key(1), {"global": images})["params"], images


def tokens(model: VisionTransformer, params, images, **options) -> dict:
    """Runs the model on one group of crops, compiled as a whole: operation by operation takes several times longer."""
    return jax.jit(lambda p, x: model.apply({"params": p}, {"global": x}, **options)["global"])(params, images)


def attention(model: VisionTransformer, params, images):
    return jax.jit(lambda p, x: last_attention(model, p, x))(params, images)


def test_a_side_that_is_no_multiple_of_the_patch_is_refused(small):
    model, params, images = small
    with pytest.raises(ValueError, match="not a multiple of the patch size 4"):
        model.apply({"params": params}, {"global": images[:, :15]})


def test_last_attention_sums_to_one_and_covers_all_tokens(small):
    model, params, images = small
    weights = attention(model, params, images)
    assert weights.shape == (4, 2, 1 + 2 + 24, 27)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


def test_last_attention_is_the_one_the_block_uses(small):
    """Recomputing the last block's attention output from the weights gives the model's own tokens."""
    model, params, images = small
    single = model.clone(depth=1)
    first = params | {"blocks": jax.tree.map(lambda x: x[:1], params["blocks"])}
    weights = attention(single, first, images)
    x = single.apply({"params": first}, images, method="embed")
    block = jax.tree.map(lambda x: x[0], first["blocks"])

    def layer_norm(y, p):
        y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return y * p["scale"] + p["bias"]

    values = (layer_norm(x, block["norm1"]) @ block["attn"]["qkv"]["kernel"])[..., 64:].reshape(4, 27, 2, 16)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, values).reshape(4, 27, 32) @ block["attn"]["proj"]["kernel"]
    y = x + 0.5 * y
    hidden = jax.nn.gelu(layer_norm(y, block["norm2"]) @ block["mlp"]["fc1"]["kernel"], approximate=False)
    expected = y + 0.5 * hidden @ block["mlp"]["fc2"]["kernel"]
    out = tokens(single, first, images)["prenorm"]
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_rope_augmentation_and_drop_path_only_act_in_training(small):
    model, params, images = small
    noisy = model.clone(rope_rescale=2.0, drop_path=0.5)
    plain, same = (tokens(network, params, images)["cls"] for network in (model, noisy))
    np.testing.assert_array_equal(plain, same)
    rngs = {"rope": jax.random.key(2), "drop_path": jax.random.key(3)}
    other = tokens(noisy, params, images, train=True, rngs=rngs)["cls"]
    assert np.abs(plain - other).max() > 1e-3


def test_rope_is_drawn_once_for_each_size_of_crops(small, monkeypatch):
    """Not for every block or image: equal images stay equal."""
    model, params, images = small
    keys, augment = [], rope.augment
    monkeypatch.setattr(rope, "augment", lambda coords, key, **box: keys.append(key) or augment(coords, key, **box))
    pair = jnp.stack([images[0], images[0]])
    crops = {"global": pair, "local": pair[:, :8, :8]}
    noisy = model.clone(rope_rescale=2.0, rope_shift=0.5)

    @jax.jit
    def run(params, crops):
        out = noisy.apply({"params": params}, crops, train=True, rngs={"rope": jax.random.key(2)})
        return out, [jax.random.key_data(key) for key in keys]

    out, (one, other) = run(params, crops)
    assert (one != other).any()
    for group, plain in ((out[name], tokens(model, params, crops[name])) for name in ("global", "local")):
        np.testing.assert_allclose(group["patches"][0], group["patches"][1], atol=1e-6)
        assert np.abs(group["patches"] - plain["patches"]).max() > 1e-5


def test_bfloat16_stays_near_float32(small):
    model, params, images = small
    exact = tokens(model, params, images)["patches"]
    half = tokens(model.clone(dtype=jnp.bfloat16), params, images)["patches"]
    assert half.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: errors of a few 2**-8 on unit-variance tokens.
    assert np.abs(exact - half.astype(jnp.float32)).max() < 0.1


@pytest.mark.parametrize("side", [8, 12])  # 7 tokens, an odd number, and 12
def test_fused_attention_equals_plain(small, portable_cudnn, side):
    """With the tokens that make their number even, stochastic depth, and what is collected."""
    model, params, _ = small
    images = jax.random.normal(jax.random.key(1), (4, side, side, 3))

    def run(attention):
        network = model.clone(attention=attention, drop_path=0.5, rope_jitter=1.5, remat="matmuls")
        rngs = {"rope": jax.random.key(2), "drop_path": jax.random.key(3)}

        def tokens(params):
            return network.apply({"params": params}, {"global": images}, train=True, collect=True, rngs=rngs)["global"]

        @jax.jit
        def with_gradients(params):
            out, backward = jax.vjp(tokens, params)
            return out, backward(jax.tree.map(jnp.cos, out))

        return with_gradients(params)

    for a, b in zip(jax.tree.leaves(run("cudnn")), jax.tree.leaves(run("xla")), strict=True):
        assert_close(a, b, relative=GRADIENT)


def equations(jaxpr):
    """Yields all equations of a program, those of its loops and functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("learned", [False, True])
def test_a_network_of_16_bits_multiplies_in_these_and_sums_in_32(small, learned):
    """In the backward pass too, where that decides how fast a GPU is, and what is left of a sum over all tokens."""
    model, _, images = small
    model = model.clone(dtype=jnp.bfloat16, ffn="swiglu", **({"pos_grid": 3, "rope_base": None} if learned else {}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"global": images})["params"]
    head = PrototypeHead(prototypes=16, hidden=8, bottleneck=4, dtype=jnp.bfloat16)
    head_shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 32)))["params"]
    masks = {"global": jnp.zeros((4, 24), bool)}

    def loss(params, head_params, images):
        out = model.apply({"params": params}, {"global": images}, masks, train=True)["global"]
        scores = head.apply({"params": head_params}, out["cls"])
        return (out["patches"].astype(jnp.float32) ** 2).sum() + (scores**2).sum()

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(shapes, head_shapes, images)
    found = {"dot_general": set(), "reduce_sum": set()}
    for equation in equations(program.jaxpr):
        if equation.primitive.name in found:
            found[equation.primitive.name] |= {str(x.aval.dtype) for x in equation.invars}
    resized = {"float32"} if learned else set()  # positions, in full precision
    assert found["dot_general"] == {"bfloat16"} | resized
    assert found["reduce_sum"] == {"float32"}
