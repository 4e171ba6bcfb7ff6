"""Weights pass through all layouts and come back with every bit in place."""

import json

import numpy as np
import pytest

from dino_jax.weights import pth, pth_writer, store
from dino_jax.weights.files import same_bits
from tests.weights import tiny

ROUND = {"resnet": ("timm", "orbax")}


def assert_same(first: dict, second: dict) -> None:
    assert set(first) == set(second)
    for name in first:
        assert same_bits(first[name], second[name]), name


@pytest.mark.parametrize(
    ("kind", "dtype"), [(kind, "float32") for kind in tiny.CHANGES] + [("dinov2_registers", "bfloat16")]
)
def test_official_to_ours_to_hugging_face_to_timm_to_official(kind, dtype, tmp_path):
    drawn = tiny.weights(kind, dtype=dtype)
    heads = {"heads": 3} if kind not in ("convnext", "resnet") else {}
    store.save(drawn, tmp_path / "first.pth", "official")
    weights = store.read(tmp_path / "first.pth", **heads)
    assert_same(weights.params, drawn.params)
    for index, to in enumerate(ROUND.get(kind, ("hf", "timm", "orbax"))):
        store.save(weights, tmp_path / f"{index}", to)
        weights = store.read(tmp_path / f"{index}")
        assert weights.manifest.problem() is None
        assert_same(weights.params, drawn.params)
    store.save(weights, tmp_path / "last.pth", "official")
    assert_same(pth.read(tmp_path / "first.pth"), pth.read(tmp_path / "last.pth"))


def test_rounded_buffers_of_an_official_file_survive_other_layouts(tmp_path):
    """Released files may hold RoPE periods in bfloat16; ours are exact, but the way back gives theirs again."""
    store.save(tiny.weights("dinov3"), tmp_path / "exact.pth", "official")
    state = dict(pth.read(tmp_path / "exact.pth"))
    state["rope_embed.periods"] = state["rope_embed.periods"].astype("bfloat16")
    state["blocks.1.attn.qkv.bias_mask"] = state["blocks.1.attn.qkv.bias_mask"].astype("float16")
    pth_writer.write(tmp_path / "rounded.pth", state)
    weights = store.read(tmp_path / "rounded.pth")
    assert set(weights.leftover) == {"rope_embed.periods", "blocks.1.attn.qkv.bias_mask"}
    for to in ("hf", "timm", "orbax"):
        store.save(weights, tmp_path / to, to)
        weights = store.read(tmp_path / to)
    store.save(weights, tmp_path / "back.pth", "official")
    assert_same(pth.read(tmp_path / "back.pth"), state)


def test_batches_that_a_resnet_counted_survive(tmp_path):
    store.save(tiny.weights("resnet"), tmp_path / "a.pth", "official")
    state = dict(pth.read(tmp_path / "a.pth")) | {"bn1.num_batches_tracked": np.array(7)}
    pth_writer.write(tmp_path / "b.pth", state)
    store.save(store.read(tmp_path / "b.pth"), tmp_path / "timm", "timm")
    store.save(store.read(tmp_path / "timm"), tmp_path / "c.pth", "official")
    assert_same(pth.read(tmp_path / "c.pth"), state)


def test_what_is_beside_a_checkpoint_must_belong_to_it(tmp_path):
    for seed in (0, 1):
        store.save(tiny.weights("dinov2_registers", seed=seed), tmp_path / str(seed), "timm")
    (tmp_path / "1" / "model.safetensors").replace(tmp_path / "0" / "model.safetensors")
    with pytest.raises(ValueError, match="of other weights: cls_token differs"):
        store.read(tmp_path / "0")


def test_without_what_is_beside_it_a_timm_folder_gives_the_same_function(tmp_path):
    drawn = tiny.weights("dinov2_registers")
    store.save(drawn, tmp_path / "timm", "timm")
    (tmp_path / "timm" / "dino_jax.safetensors").unlink()
    (tmp_path / "timm" / "dino_jax.json").unlink()
    read = store.read(tmp_path / "timm", heads=3)
    assert same_bits(read.params["cls_token"], drawn.params["cls_token"] + drawn.params["pos_embed"][0])
    assert not read.params["pos_embed"][0].any()
    assert same_bits(read.params["pos_embed"][1:], drawn.params["pos_embed"][1:])
    assert read.manifest.counts()["zero"] == 1  # the mask token
    assert read.architecture.options["ffn_ratio"] == 4.0


def test_timm_networks_without_biases_are_for_weights_whose_biases_are_zero(tmp_path):
    drawn = tiny.weights("dinov3")
    drawn.params["blocks/attn/qkv/bias"][:, :48] = drawn.params["blocks/attn/qkv/bias"][:, 96:] = 0
    store.save(drawn, tmp_path / "timm", "timm")
    read = store.read(tmp_path / "timm")
    assert not [name for row in read.manifest.rows for name in row.theirs if "q_bias" in name]
    assert_same(read.params, drawn.params)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"dino_jax\.json lacks name, family, options, mean, std"),
        (
            '{"name": "x", "family": "vgg", "options": {}, "mean": [], "std": []}',
            "there is no family 'vgg': use dino, d",
        ),
        ("[]", "is damaged"),
        ("{", "is damaged"),
        ({"options": []}, r"is damaged: options = \[\] is not a mapping"),
        ({"options": {}}, "is damaged: dinov3_custom lacks the option patch_size"),
        ({"family": ["x"]}, r"there is no family \['x'\]: use dino, d"),
        ({"mean": 3}, "is damaged: mean = 3 is not a list of finite numbers"),
        ({"width": "a"}, "is damaged: dinov3_custom cannot have width = 'a': give a fitting int"),
        ({"qkv_bias": 1}, "cannot have qkv_bias = 1: give a fitting bool"),
        ({"registers": -1}, "cannot have registers = -1"),
        ({"rope_base": "x"}, "cannot have rope_base = 'x'"),
        ({"width_": 3}, "has no option 'width_'; did you mean width"),
    ],
)
@pytest.mark.parametrize("to", ["orbax", "timm"])
def test_a_damaged_description_of_our_own(content, message, to, tmp_path):
    store.save(tiny.weights("dinov3"), tmp_path / "x", to)
    file = tmp_path / "x" / "dino_jax.json"
    if isinstance(content, dict):
        facts = json.loads(file.read_text())
        ((key, value),) = content.items()
        (facts if key in facts else facts["options"])[key] = value
        content = json.dumps(facts)
    (tmp_path / "x" / "config.json").write_text('{"architecture": ""}')  # which says no statistics
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        store.read(tmp_path / "x")
