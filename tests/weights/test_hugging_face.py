"""Parity with transformers: each class with random weights, loaded from a folder that it saved, and back."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.models import VisionTransformer
from dino_jax.weights import pth_writer, reference, safetensors, store
from tests.conftest import golden_names, golden_path
from tests.torch_libraries import library
from tests.weights import tiny

VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
V2 = VIT | {"patch_size": 14, "image_size": 56, "mlp_ratio": 3}
V3 = VIT | {"patch_size": 16, "image_size": 64, "num_register_tokens": 2}
# class -> arguments of its configuration
CASES = {
    "vit": ("ViT", VIT | {"intermediate_size": 64, "patch_size": 8, "image_size": 40, "layer_norm_eps": 1e-6}),
    "dinov2": ("Dinov2", V2),
    "dinov2_swiglu": ("Dinov2", V2 | {"use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", V2 | {"num_register_tokens": 3}),
    "registers_swiglu": ("Dinov2WithRegisters", V2 | {"num_register_tokens": 1, "use_swiglu_ffn": True}),
    "dinov3": ("DINOv3ViT", V3 | {"intermediate_size": 96}),
    "dinov3_swiglu": (
        "DINOv3ViT",
        V3 | {"intermediate_size": 72, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "dinov3_7b": (
        "DINOv3ViT",
        V3
        | {"intermediate_size": 64, "use_gated_mlp": True, "hidden_act": "silu"}
        | {"query_bias": False, "value_bias": False},
    ),
    "dinov3_key_bias": ("DINOv3ViT", V3 | {"intermediate_size": 64, "key_bias": True, "rope_theta": 10_000.0}),
    "convnext": ("DINOv3ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}),
}
# The network is an argument, so that nothing of it is folded into the program, as XLA would for long.
run = jax.jit(lambda model, images: model(images))


@functools.partial(jax.jit, static_argnums=3)
def apply(model, images: dict, masks: dict, collect: bool):
    """Runs the network below the model."""
    return model.backbone.apply(model.variables(), images, masks, collect=collect)


def random_network(name: str, arguments: dict):
    """Builds a network of transformers whose every parameter is random."""
    transformers, torch = library("transformers"), library("torch")
    options = {"add_pooling_layer": False} if name == "ViT" else {}
    network = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**arguments), **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for label, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = any(word in label for word in ("norm", "lambda1", "gamma")) and not label.endswith("bias")
            kernel = parameter.ndim > 1 and label.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if gain else noise / parameter[0].numel() ** 0.5 if kernel else 0.3 * noise)
    return network.eval()


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_features_and_files_are_those_of_transformers(case, tmp_path):
    name, arguments = CASES[case]
    network = random_network(name, arguments)
    network.save_pretrained(tmp_path / "theirs")
    weights = store.read(tmp_path / "theirs")
    model = weights.extractor("float32")
    native = arguments.get("image_size", 64)
    step = model.patch_size
    for height, width in ((native, native), (native + 2 * step, native - step)):
        images = np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)
        ours = run(model, jnp.asarray(images))
        for output, expected in reference.tokens_of_hugging_face(network, images, model).items():
            np.testing.assert_allclose(np.reshape(ours[output], expected.shape), expected, atol=1e-5, err_msg=output)
    store.save(weights, tmp_path / "ours", "hf")
    loaded, remarks = type(network).from_pretrained(
        tmp_path / "ours", output_loading_info=True, **({"add_pooling_layer": False} if name == "ViT" else {})
    )
    assert not any(remarks.values()), remarks
    state = loaded.state_dict()
    assert all((state[label] == x).all() for label, x in network.state_dict().items())


@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if not name.startswith("DINOv3")])
def test_names_in_memory_are_those_of_files(case, tmp_path):
    """What torch.save(model.state_dict()) writes has other names than what save_pretrained does."""
    name, arguments = CASES[case]
    network = random_network(name, arguments)
    library("torch").save(network.state_dict(), tmp_path / "memory.bin")
    network.save_pretrained(tmp_path / "folder")
    found = store.read(tmp_path / "memory.bin", heads=arguments["num_attention_heads"])
    expected = store.read(tmp_path / "folder")
    assert found.params.keys() == expected.params.keys()
    assert all((found.params[path] == x).all() for path, x in expected.params.items())


@pytest.mark.golden
@pytest.mark.parametrize("folder", golden_names("hf_*"))
def test_recorded_outputs(folder):
    path = golden_path(folder)
    with np.load(path / "io.npz") as file:
        recorded = {name: file[name] for name in file.files}
    model = store.read(path).extractor("float32")
    for size in (name.split("/")[1] for name in recorded if name.endswith("pixel_values")):
        images = {"global": jnp.asarray(recorded[f"in/{size}/pixel_values"].transpose(0, 2, 3, 1))}
        masks = recorded.get(f"in/{size}/bool_masked_pos")
        collect = isinstance(model.backbone, VisionTransformer) and f"out/{size}/hidden_states/1" in recorded
        out = apply(model, images, {}, collect)["global"]
        tokens = np.concatenate([out["cls"][:, None], out["registers"], out["patches"]], 1)
        expected = recorded[f"out/{size}/last_hidden_state"]
        atol = 1e-5 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(tokens, expected, atol=atol)
        np.testing.assert_allclose(out["cls"], recorded[f"out/{size}/pooler_output"], atol=atol)
        for index, block in enumerate(out.get("blocks", ()), start=1):
            expected = recorded[f"out/{size}/hidden_states/{index}"]
            np.testing.assert_allclose(block, expected, atol=1e-5 * max(1, np.abs(expected).max()))
        if masks is not None:
            masked = apply(model, images, {"global": jnp.asarray(masks)}, False)["global"]
            tokens = np.concatenate([masked["cls"][:, None], masked["registers"], masked["patches"]], 1)
            np.testing.assert_allclose(tokens, recorded[f"out/{size}/masked/last_hidden_state"], atol=atol)


def test_a_sharded_index_is_read(tmp_path):
    path = golden_path("hf_dinov3_vit")
    if path is None:
        pytest.skip("golden files are absent")
    state = safetensors.read(path / "model.safetensors")
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    index = {}
    for number, half in enumerate(halves):
        safetensors.write(tmp_path / f"model-{number}.safetensors", half)
        index |= dict.fromkeys(half, f"model-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for place in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert store.read(place).manifest.counts() == store.read(path).manifest.counts()
    for number, half in enumerate(halves):
        pth_writer.write(tmp_path / f"pytorch_model-{number}.bin", half)
    binary = {
        name: file.replace("model", "pytorch_model").replace("safetensors", "bin") for name, file in index.items()
    }
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / "kept")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": binary}))
    assert store.read(tmp_path).manifest.counts() == store.read(path).manifest.counts()
    (tmp_path / "kept").rename(tmp_path / "model.safetensors.index.json")
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-1\.safetensors cannot be read"):
        store.read(tmp_path)


def test_an_index_alone_is_read(tmp_path):
    drawn = tiny.weights("dinov2")
    store.save(drawn, tmp_path, "hf", force=True)
    state = safetensors.read(tmp_path / "model.safetensors")
    safetensors.write(tmp_path / "model-00001-of-00001.safetensors", state)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}))
    for name in ("config.json", "dino_jax.json", "model.safetensors"):
        (tmp_path / name).unlink()
    assert store.read(index, heads=3).params.keys() == drawn.params.keys()
    assert store.read(tmp_path / "model-00001-of-00001.safetensors", heads=3).params.keys() == drawn.params.keys()


def test_a_file_is_read_as_its_folder_unless_that_is_of_another_model(tmp_path):
    drawn = tiny.weights("dinov2")
    store.save(drawn, tmp_path / "x", "hf")
    (tmp_path / "x" / "dino_jax.json").unlink()
    file = tmp_path / "x" / "model.safetensors"
    assert store.read(file).architecture.options["heads"] == 3
    (tmp_path / "x" / "config.json").write_text('{"model_type": "upernet"}')
    with pytest.raises(ValueError, match=r"model_type 'upernet' in config\.json is not among those read here"):
        store.read(tmp_path / "x")
    assert store.read(file, heads=3).params.keys() == drawn.params.keys()


def test_one_part_of_several_names_its_folder(tmp_path):
    part = tmp_path / "model-00001-of-00006.safetensors"
    part.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"is one of 6 parts: give the folder, {tmp_path}"):
        store.read(part)


def test_the_cache_of_hugging_face_is_read(tmp_path):
    """A model's folder there, and a file by the name that it is kept under."""
    folder = tmp_path / "models--facebook--dinov2-tiny"
    drawn = tiny.weights("dinov2")
    store.save(drawn, folder / "snapshots" / "0a1b", "hf")
    assert store.read(folder).params.keys() == drawn.params.keys()
    (folder / "blobs").mkdir()
    blob = (folder / "snapshots" / "0a1b" / "model.safetensors").rename(folder / "blobs" / "4b0c5a")
    assert store.read(blob, heads=3).params.keys() == drawn.params.keys()
    (folder / "snapshots" / "2c3d").mkdir()
    with pytest.raises(ValueError, match=r"holds 2 snapshots: give one of them, .*snapshots/0a1b, .*snapshots/2c3d"):
        store.read(folder)


@pytest.mark.parametrize("library", ["hf", "timm"])
def test_dino_has_no_layer_scale_in_other_libraries(library, tmp_path):
    drawn = tiny.weights("dino")
    changed = drawn.architecture.with_options(layer_scale=1.0)
    params = drawn.params | {
        f"blocks/ls{i}/gamma": np.ones((changed.options["depth"], changed.options["width"]), "f4") for i in (1, 2)
    }
    with pytest.raises(ValueError, match="cannot be built with this network's layer_scale"):
        store.save(dataclasses.replace(drawn, architecture=changed, params=params), tmp_path / "out", library)


def test_a_class_that_cannot_hold_a_network_says_which_option(tmp_path):
    drawn = tiny.weights("dinov3")
    changed = drawn.architecture.with_options(rope_normalize="max")
    with pytest.raises(ValueError, match=r"DINOv3ViTModel of transformers cannot be built with .* rope_normalize"):
        store.save(store.Weights(changed, *list(vars(drawn).values())[1:]), tmp_path / "x", "hf")


@pytest.mark.parametrize("option", ["layer_scale", "untie_cls_and_patch_norms"])
@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_timm_cannot_hold_every_network(family, option, tmp_path):
    there = {"layer_scale": 0.0, "untie_cls_and_patch_norms": True}[option]
    drawn = tiny.weights(family)
    changed = dataclasses.replace(drawn, architecture=drawn.architecture.with_options(**{option: there}))
    with pytest.raises(ValueError, match=f"of timm cannot be built with this network's {option}"):
        store.save(changed, tmp_path / "x", "timm")


@pytest.mark.parametrize(
    ("kind", "name", "facts"),
    [
        ("dino", "ViTImageProcessor", {"size": {"height": 224, "width": 224}, "resample": 2}),
        ("dinov2", "BitImageProcessor", {"size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True}),
        (
            "dinov2_registers",
            "BitImageProcessor",
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
        ),
        ("dinov3", "DINOv3ViTImageProcessor", {"size": {"height": 224, "width": 224}, "resample": 2}),
        ("convnext", "DINOv3ViTImageProcessor", {"size": {"height": 224, "width": 224}, "resample": 2}),
    ],
)
def test_images_are_prepared_as_published(kind, name, facts, tmp_path):
    own = dataclasses.replace(tiny.weights(kind), mean=(0.43, 0.411, 0.296), std=(0.213, 0.156, 0.143))
    store.save(own, tmp_path / "x", "hf")
    there = library("transformers").AutoImageProcessor.from_pretrained(tmp_path / "x").to_dict()
    expected = facts | {"image_processor_type": name, "do_resize": True, "do_rescale": True, "do_normalize": True}
    assert {key: there[key] for key in expected} == expected
    assert (tuple(there["image_mean"]), tuple(there["image_std"])) == (own.mean, own.std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "clip"}, "model_type 'clip' in config.json is not among those read here: vit, dinov2"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"layer_norm_eps": None}, r"config\.json of .*x lacks layer_norm_eps: fetch it again"),
        ({"num_attention_heads": None}, r"config\.json of .*x lacks num_attention_heads"),
        ({"layer_norm_eps": math.nan}, r"config\.json of .*x has layer_norm_eps = nan, which must be a number above 0"),
        ({"layer_norm_eps": "1e-6"}, r"has layer_norm_eps = '1e-6', which must be a number above 0"),
        ({"num_attention_heads": 0}, r"has num_attention_heads = 0, which must be a number above 0"),
    ],
)
def test_configurations_that_are_not_dinos(change, message, tmp_path):
    store.save(tiny.weights("dinov2"), tmp_path / "x", "hf")
    file = tmp_path / "x" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (tmp_path / "x" / "dino_jax.json").unlink()
    with pytest.raises(ValueError, match=message):
        store.read(tmp_path / "x")


def test_rope_theta_stands_in_either_of_two_places(tmp_path):
    store.save(tiny.weights("dinov3"), tmp_path / "x", "hf")
    (tmp_path / "x" / "dino_jax.json").unlink()
    file = tmp_path / "x" / "config.json"
    config = json.loads(file.read_text())
    del config["rope_theta"]
    gathered = {"rope_parameters": {"rope_type": "default", "rope_theta": 50}}
    file.write_text(json.dumps(config | gathered))
    assert store.read(tmp_path / "x").architecture.options["rope_base"] == 50.0
    file.write_text(json.dumps(config | gathered | {"rope_theta": 70.0}))
    assert store.read(tmp_path / "x").architecture.options["rope_base"] == 70.0
    file.write_text(json.dumps(config | {"rope_parameters": "x"}))
    with pytest.raises(ValueError, match="is damaged: rope_parameters = 'x' is not a mapping"):
        store.read(tmp_path / "x")
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json of .*x lacks rope_theta"):
        store.read(tmp_path / "x")


@pytest.mark.parametrize(
    ("case", "change", "counts"),
    [
        ("registers", {"num_register_tokens": 0}, {"skipped": 1}),
        ("dinov3", {"num_register_tokens": 0}, {"skipped": 1}),
        ("dinov2", {"use_mask_token": False}, {"zero": 1}),
        ("vit", {"num_channels": 1}, {}),
    ],
)
def test_configurations_of_transformers_that_leave_something_out(case, change, counts, tmp_path):
    transformers = library("transformers")
    name, arguments = CASES[case]
    options = {"add_pooling_layer": False} if name == "ViT" else {}
    config = getattr(transformers, f"{name}Config")(**arguments | change)
    getattr(transformers, f"{name}Model")(config, **options).save_pretrained(tmp_path)
    weights = store.read(tmp_path)
    there = weights.manifest.counts()
    assert {kind: there[kind] for kind in there if kind not in ("matched", "zero")} | {
        kind: there[kind] for kind in counts
    } == counts
    assert len(weights.mean) == change.get("num_channels", 3)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"image_mean": 0.5, "image_std": [1, 1, 1]}, "mean = 0.5 is not a list of finite numbers"),
        ({"image_mean": ["a"] * 3, "image_std": [1, 1, 1]}, "mean = .'a', 'a', 'a'. is not a list of finite numbers"),
        ({"image_mean": [None] * 3, "image_std": [1, 1, 1]}, "is not a list of finite numbers"),
        ({"image_mean": [0.5] * 3, "image_std": [0, 0, 0]}, r"std = \(0, 0, 0\) must be positive"),
        ({"image_mean": [0.5], "image_std": [1]}, "mean has 1 numbers for 3 channels"),
    ],
)
def test_statistics_that_are_none(statistics, message, tmp_path):
    store.save(tiny.weights("dinov2"), tmp_path / "x", "hf")
    (tmp_path / "x" / "preprocessor_config.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json is damaged: .*{message}"):
        store.read(tmp_path / "x")


@pytest.mark.parametrize("listed", [["x"], {"norm.weight": 3}, None])
def test_a_damaged_index(listed, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(ValueError, match=r"index\.json is damaged: weight_map does not give a file for each tensor"):
        store.read(tmp_path)


@pytest.mark.parametrize("case", ["vit", "dinov2", "registers"])
def test_a_classifier_of_transformers_is_skipped(case, tmp_path):
    transformers = library("transformers")
    name, arguments = CASES[case]
    config = getattr(transformers, f"{name}Config")(**arguments, num_labels=5)
    network = getattr(transformers, f"{name}ForImageClassification")(config)
    network.save_pretrained(tmp_path)
    weights = store.read(tmp_path)
    assert weights.manifest.counts()["skipped"] == 2
    expected = network.state_dict()[f"{network.base_model_prefix}.embeddings.cls_token"].numpy()
    np.testing.assert_array_equal(weights.params["cls_token"].reshape(-1), expected.reshape(-1))
