"""The extractor: grids of every kind of network, what jit sees, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from dino_jax.models import Extractor, build
from dino_jax.models.readout import last_keys

NETWORKS = {
    "dinov2_vits14_reg": {"width": 16, "depth": 2, "heads": 2, "pos_grid": 2},
    "dinov3_convnext_tiny": {"depths": (1, 1), "widths": (8, 16)},
    "dino_resnet50": {"depths": (1, 1), "channels": 4},
}


def extractor(name: str) -> Extractor:
    backbone = build(name, **NETWORKS[name])
    images = jnp.zeros((1, 28, 28, 3))
    variables = jax.jit(backbone.init)(jax.random.key(0), {"global": images})
    return Extractor(name, backbone, **variables)


@pytest.fixture(scope="module")
def models():
    return {name: extractor(name) for name in NETWORKS}


@pytest.mark.parametrize(
    ("name", "size", "grids"),
    [
        ("dinov2_vits14_reg", (28, 70), [(2, 5), (2, 5)]),
        ("dinov3_convnext_tiny", (31, 15), [(7, 3), (3, 1)]),
        ("dino_resnet50", (33, 15), [(9, 4), (5, 2)]),
    ],
)
def test_patches_are_on_their_grid(models, name, size, grids):
    """Transformers keep one grid; ConvNeXt rounds each stage down, ResNet up."""
    model = models[name]
    images = jax.random.normal(jax.random.key(1), (2, *size, 3))
    out, layers = jax.jit(lambda m, x: (m(x), m.intermediate(x, 2)))(model, images)
    assert [layer["patches"].shape[1:3] for layer in layers] == grids
    assert out["patches"].shape == (2, *grids[-1], model.width)
    assert out["cls"].shape == (2, model.width)
    assert out["registers"].shape == (2, 4 if "reg" in name else 0, model.width)
    # The last layer's features, normed, are the model's own.
    np.testing.assert_allclose(layers[-1]["patches"], out["patches"], atol=1e-5)


def test_vmap_adds_an_axis(models):
    """Such as the crops of each image."""
    model = models["dinov2_vits14_reg"]
    crops = jax.random.normal(jax.random.key(1), (2, 3, 28, 28, 3))
    found = jax.jit(jax.vmap(model))(crops)
    expected = jax.jit(model)(crops.reshape(6, 28, 28, 3))
    assert found["patches"].shape == (2, 3, 2, 2, 16)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name].reshape(x.shape), x, atol=1e-5)


def test_weights_are_leaves_and_statistics_too(models):
    """What jit does not bake into its program: replacing them changes the features."""
    model = models["dino_resnet50"]
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)}
    assert ".params['stem']['conv']['kernel']" in names
    assert ".batch_stats['stem']['norm']['mean']" in names
    images = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    run = jax.jit(lambda m, x: m(x)["cls"])
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert np.abs(run(model, images) - run(doubled, images)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("dinov2_vits14_reg", 3, "dinov2_vits14_reg has 2 blocks, asked for 3: use 1 to 2"),
        ("dinov2_vits14_reg", 0, "asked for 0: use 1 to 2"),
        ("dinov2_vits14_reg", (0, 2), r"asked for \(0, 2\): use indices from -2 to 1"),
        ("dinov3_convnext_tiny", [-3], r"has 2 stages, asked for \[-3\]: use indices from -2 to 1"),
    ],
)
def test_blocks_that_a_network_has_not_are_refused(models, name, layers, message):
    with pytest.raises(ValueError, match=message):
        models[name].intermediate(np.zeros((1, 28, 28, 3), np.float32), layers)


def test_images_of_8_and_16_bits_are_normalised_alike(models):
    model = models["dino_resnet50"]
    bytes_ = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    expected = (bytes_ / 255 - np.array(model.mean)) / np.array(model.std)
    np.testing.assert_allclose(model.normalize(bytes_), expected, atol=1e-5)
    np.testing.assert_allclose(model.normalize(bytes_.astype(np.uint16) * 257), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(model.normalize)(bytes_), expected, atol=1e-5)
    np.testing.assert_allclose(model.normalize(bytes_ / 255), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint32", "bool"])
def test_images_of_other_types_are_refused(models, dtype):
    with pytest.raises(ValueError, match=f"got {dtype}: convert to uint8 or uint16"):
        models["dino_resnet50"].normalize(np.ones((4, 4, 3), dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_up_to_255_are_refused(models, dtype):
    """On the host alone: of what is traced or on a device the values would have to be fetched."""
    model, images = models["dino_resnet50"], np.full((4, 4, 3), 255, dtype)
    with pytest.raises(ValueError, match=r"images reach 255, floats must be in .* give uint8, or divide by 255"):
        model.normalize(images)
    assert model.normalize(jnp.asarray(images)).shape == jax.jit(model.normalize)(images).shape == (4, 4, 3)
    assert model.normalize(np.full((4, 4, 3), 1.5, dtype)).shape == (4, 4, 3)  # what resizing may overshoot to


def test_channels_come_last(models):
    with pytest.raises(ValueError, match=r"height, width, 3\), got \(1, 3, 28, 28\): put channels last"):
        models["dino_resnet50"].normalize(np.zeros((1, 3, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 28, 28, 4), np.float32), r"takes images \(batch, height, width, 3\), got \(1, 28, 28, 4\)"),
        (np.zeros((1, 28, 28, 3), np.uint8), "takes normalised floats, got uint8: use model.normalize"),
        (np.zeros((1, 28, 30, 3), np.float32), "not a multiple of the patch size 14"),
    ],
)
def test_images_that_do_not_fit_are_refused(models, images, message):
    with pytest.raises(ValueError, match=message):
        models["dinov2_vits14_reg"](images)


def test_convolutions_have_no_attention(models):
    for asked in (models["dino_resnet50"].attention, models["dino_resnet50"].keys):
        with pytest.raises(ValueError, match="dino_resnet50 has no attention"):
            asked(np.zeros((1, 16, 16, 3), np.float32))


def test_keys_are_on_the_grid(models):
    model, images = models["dinov2_vits14_reg"], jax.random.normal(jax.random.key(1), (2, 28, 42, 3))
    keys = model.keys(images)
    assert keys.shape == (2, 2, 3, model.width)
    flat = jax.jit(lambda m, x: last_keys(m.backbone, m.params, x))(model, images)
    np.testing.assert_allclose(keys.reshape(flat.shape), flat, atol=1e-6)


def test_a_model_is_jitted_by_itself_or_as_an_argument(models):
    model = models["dinov2_vits14_reg"]
    images = jnp.ones((1, 28, 42, 3))
    alone, argument = jax.jit(model)(images), jax.jit(lambda m, x: m(x))(model, images)
    np.testing.assert_allclose(alone["patches"], argument["patches"], atol=1e-6)


def test_a_second_call_compiles_nothing(models):
    """As a user calls it, outside of any jit."""
    model, images = models["dinov2_vits14_reg"], jnp.zeros((1, 28, 28, 3))
    calls = (model, lambda x: model.intermediate(x, 2), lambda x: model.attention(x, queries=1), model.keys)
    for call in calls:
        call(images)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "compile" in event else None
    )
    try:
        for call in calls:
            call(images)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


def test_it_is_shown_without_its_weights(models):
    assert len(repr(models["dinov2_vits14_reg"])) < 1500


def products(jaxpr):
    """Yields the precision of every product of a program, those of its parts too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for part in jaxprs_in_params(equation.params):
            yield from products(part)


@pytest.mark.parametrize("name", NETWORKS)
def test_products_of_float32_have_its_precision_on_every_device(models, name):
    """As in PyTorch; JAX's default is faster and coarser on GPUs and TPUs."""
    model, images = models[name], jnp.zeros((1, 28, 28, 3))
    calls = [model, lambda x: model.intermediate(x, 1)]
    calls += [model.attention, model.keys] if name == "dinov2_vits14_reg" else []
    for call in calls:
        found = {str(precision) for precision in products(jax.make_jaxpr(call)(images).jaxpr)}
        assert found == {"(Precision.HIGHEST, Precision.HIGHEST)"}
    gradient = jax.make_jaxpr(jax.grad(lambda x: model(x)["cls"].sum()))(images)
    assert {str(precision) for precision in products(gradient.jaxpr)} == {"(Precision.HIGHEST, Precision.HIGHEST)"}
    half = dataclasses.replace(model, backbone=model.backbone.clone(dtype=jnp.bfloat16))
    assert "None" in {str(precision) for precision in products(jax.make_jaxpr(half)(images).jaxpr)}
    with jax.default_matmul_precision("bfloat16"):  # as the user asks
        found = {str(precision) for precision in products(jax.make_jaxpr(lambda x: model(x))(images).jaxpr)}
    assert "(Precision.DEFAULT, Precision.DEFAULT)" in found
