"""Parity with timm: each kind of network with random weights, at the size it was made for and at another one.

timm resizes positions by the size of the grid, antialiased, as our networks do that are read from its files.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.weights import configs, mapping, reference, safetensors, store
from dino_jax.weights.network import published
from tests.torch_libraries import library
from tests.weights import tiny

SIZE = {"embed_dim": 48, "depth": 2, "num_heads": 3, "dynamic_img_size": True}
# name of the network in timm -> arguments that make it tiny
CASES = {
    "vit_small_patch8_224": SIZE | {"img_size": 40},
    "vit_small_patch14_dinov2": SIZE | {"img_size": 56},
    "vit_small_patch14_reg4_dinov2": SIZE | {"img_size": 56},
    "vit_giant_patch14_reg4_dinov2": SIZE | {"img_size": 56},
    "vit_small_patch16_dinov3_qkvb": SIZE,
    "vit_small_patch16_dinov3": SIZE,
    "vit_small_plus_patch16_dinov3_qkvb": SIZE,
    "vit_7b_patch16_dinov3": SIZE,
    "convnext_tiny": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    "resnet50": {"layers": (1, 2, 1, 1)},
}
# The network is an argument, so that nothing of it is folded into the program, as XLA would for long.
run = jax.jit(lambda model, images: model(images))


def random_network(name: str):
    """Builds a network of timm whose every parameter and statistic is random."""
    timm, torch = library("timm"), library("torch")
    pooling = {"global_pool": "token"} if "vit" in name else {}
    # The normalisation of these is 1e-6 in DINO; timm's default for the plain ViT is the same.
    network = timm.create_model(name, num_classes=0, **pooling, **CASES[name])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for label, x in network.state_dict().items():
            if not x.is_floating_point():
                continue
            noise = torch.randn(x.shape, generator=generator)
            gain = (x.ndim == 1 and label.endswith(("weight", "gamma"))) or "gamma_" in label
            if label.endswith("running_var"):
                x.copy_((0.3 * noise).exp())
            elif gain:
                x.copy_(1 + 0.3 * noise)
            else:
                x.copy_(noise / x[0].numel() ** 0.5 if x.ndim > 1 and label.endswith("weight") else 0.3 * noise)
    return network.eval()


def save(network, folder, name: str) -> dict[str, np.ndarray]:
    state = {label: x.numpy() for label, x in network.state_dict().items()}
    folder.mkdir()
    safetensors.write(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 0}))
    return state


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_features_and_files_are_those_of_timm(name, tmp_path):
    network = random_network(name)
    state = save(network, tmp_path / "theirs", name)
    untold = {"qkv_bias": False} if "7b" in name else {}
    weights = store.read(tmp_path / "theirs", **({"heads": 3} if "vit" in name else {}), **untold)
    model = weights.extractor("float32")
    native = CASES[name].get("img_size", 64)
    for height, width in ((native, native), (native + 2 * model.patch_size, native - model.patch_size)):
        images = np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)
        ours = run(model, jnp.asarray(images))
        for output, expected in reference.tokens_of_timm(network, images, model).items():
            allowed = 1e-5 * np.abs(expected).max(initial=1.0)  # a ResNet has no norm at its end
            np.testing.assert_allclose(np.reshape(ours[output], expected.shape), expected, atol=allowed)
    store.save(weights, tmp_path / "ours", "timm")
    written = safetensors.read(tmp_path / "ours" / "model.safetensors")
    assert set(written) == set(state)
    assert all(np.array_equal(written[label], x) for label, x in state.items())


@pytest.mark.parametrize("kind", ["dino", "dinov2", "dinov2_registers", "dinov3"])
def test_networks_of_other_sizes_are_built_by_timm_from_what_is_written(kind, tmp_path):
    library("timm")
    weights = tiny.weights(kind)
    store.save(weights, tmp_path / "ours", "timm")
    network = reference.timm(weights, tmp_path / "ours")
    model = store.read(tmp_path / "ours").extractor("float32")  # which resizes positions as timm does
    side = model.patch_size
    images = np.random.default_rng(1).normal(size=(1, 4 * side, 5 * side, 3)).astype(np.float32)
    ours = run(model, jnp.asarray(images))
    for output, expected in reference.tokens_of_timm(network, images, model).items():
        np.testing.assert_allclose(np.reshape(ours[output], expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(("option", "value"), [("rope_normalize", "max"), ("rope_base", 50.0), ("norm", "rmsnorm")])
def test_a_published_name_promises_what_timm_builds_under_it(option, value):
    changed = published("dinov3_vits16").with_options(**{option: value})
    with pytest.raises(ValueError, match=f"patch16_dinov3 of timm cannot be built with this network's {option}"):
        configs.timm(changed, (0.5,) * 3, (0.5,) * 3, biased=True)


def test_published_names_exist_in_timm_and_take_our_tensors():
    timm, torch = library("timm"), library("torch")
    names = set(timm.list_models())
    for name, there in configs.TIMM.items():
        assert there in names, name
    for name in ("dinov2_vits14_reg", "dinov3_vits16plus", "dino_vits16", "dinov3_convnext_tiny", "dino_resnet50"):
        architecture = published(name)
        params = {path: np.zeros(shape, np.float32) for path, shape in architecture.shapes().items()}
        layout = store.layout_for(architecture, "timm")
        state = mapping.to_theirs(params, layout, architecture.options, leftover={}).tensors
        config = configs.timm(architecture, (0.5,) * 3, (0.5,) * 3, biased=True)
        with torch.device("meta"):
            network = timm.create_model(config["architecture"], **config["model_args"])
        expected = {label: tuple(x.shape) for label, x in network.state_dict().items()}
        batches = {label for label in expected if label.endswith("num_batches_tracked")}
        assert {label: x.shape for label, x in state.items()} == {
            label: shape for label, shape in expected.items() if label not in batches
        }


def test_a_file_is_read_as_its_folder(tmp_path):
    """DINO's own names are the same, and its code resizes positions in another way."""
    drawn = tiny.weights("dino")
    store.save(drawn, tmp_path / "x", "timm")
    found = [store.read(place) for place in (tmp_path / "x", tmp_path / "x" / "model.safetensors")]
    assert [weights.manifest.layout for weights in found] == ["timm_dino", "timm_dino"]
    assert found[0].architecture == found[1].architecture
    (tmp_path / "x" / "dino_jax.json").unlink()
    found = [store.read(place, heads=3) for place in (tmp_path / "x", tmp_path / "x" / "model.safetensors")]
    assert [weights.architecture.options["pos_offset"] for weights in found] == [0.0, 0.0]


@pytest.mark.parametrize("old", [True, False])
def test_statistics_stand_in_either_of_two_places(old, tmp_path):
    store.save(tiny.weights("dinov2"), tmp_path / "x", "timm")
    file = tmp_path / "x" / "config.json"
    config = json.loads(file.read_text())
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    file.write_text(
        json.dumps(config | ({"pretrained_cfg": None} | statistics if old else {"pretrained_cfg": statistics}))
    )
    weights = store.read(tmp_path / "x")
    assert (weights.mean, weights.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    file.write_text(json.dumps(config | {"pretrained_cfg": "x"}))
    with pytest.raises(ValueError, match=r"config\.json is damaged: pretrained_cfg = 'x' is not a mapping"):
        store.read(tmp_path / "x")


def test_positions_are_resized_as_timm_does_where_weights_come_from_timm(tmp_path):
    drawn = tiny.weights("dinov2")
    store.save(drawn, tmp_path / "timm", "timm")
    there = functools.partial(store.read(tmp_path / "timm").architecture.options.get)
    assert (there("pos_offset"), there("pos_antialias")) == (0.0, True)
    store.save(drawn, tmp_path / "official.pth", "official")
    there = functools.partial(store.read(tmp_path / "official.pth", heads=3).architecture.options.get)
    assert there("pos_offset") == 0.1
    assert not there("pos_antialias")
