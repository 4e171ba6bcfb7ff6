"""The papers' own checkpoints: backbones and training checkpoints, and what is said of those that do not fit."""

import argparse
import dataclasses
import re

import jax
import numpy as np
import pytest

from dino_jax import pretrained
from dino_jax.models import VIT_VARIANTS
from dino_jax.weights import infer, layouts, mapping, pth, pth_writer, store
from dino_jax.weights.files import same_bits
from dino_jax.weights.manifest import collapse, in_braces
from dino_jax.weights.network import family_of, flatten, published
from tests import torch_weights
from tests.conftest import golden_names
from tests.torch_libraries import library
from tests.weights import tiny


def told(config: dict) -> dict:
    """Returns the options of a recorded network that its tensors do not show."""
    options = {"heads": config["num_heads"]}
    if config.get("norm_layer") == "rmsnorm":
        options |= {"norm": "rmsnorm"}
    if config.get("pos_embed_rope_min_period"):
        options |= {"rope_base": None, "rope_min_period": config["pos_embed_rope_min_period"]}
        options |= {"rope_max_period": config["pos_embed_rope_max_period"]}
    return options


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v?vit_*.npz") + golden_names("v3convnext_*.npz"))
def test_recorded_state_dicts_are_read_whole(golden, name, tmp_path):
    recorded = golden(name)
    state = recorded.under("param/")
    pth_writer.write(tmp_path / "x.pth", state)
    vit = "vit" in name
    weights = store.read(tmp_path / "x.pth", **(told(recorded.config) if vit else {}))
    expected = torch_weights.tree(state) if vit else torch_weights.convnext_tree(state)
    assert set(weights.params) == set(flatten(expected))
    assert all(same_bits(weights.params[path], np.ascontiguousarray(x)) for path, x in flatten(expected).items())
    counts = weights.manifest.counts()
    assert sum(counts.values()) == len(state)
    assert set(counts) <= {"matched", "buffer", "duplicate"}
    store.save(weights, tmp_path / "y.pth", "official")
    again = store.read(tmp_path / "y.pth", **(told(recorded.config) if vit else {}))
    assert all(same_bits(again.params[path], x) for path, x in weights.params.items())


def assert_backbone_of(path, expected: dict[str, np.ndarray], **options) -> store.Weights:
    weights = store.read(path, **options)
    tree = flatten(torch_weights.tree(expected))
    assert set(weights.params) == set(tree)
    assert all(same_bits(weights.params[p], np.ascontiguousarray(x)) for p, x in tree.items())
    return weights


@pytest.mark.golden
def test_full_checkpoints_of_dino(golden, tmp_path):
    """DINO saves student and teacher, the student's names wrapped, beside optimizer and command line."""
    torch = library("torch")
    recorded = golden("v1_train.npz")
    teacher, student = (
        {k: torch.tensor(x) for k, x in recorded.under(f"init/{who}/").items()} for who in ("teacher", "student")
    )
    full = {
        "student": {f"module.{name}": x for name, x in student.items()},
        "teacher": teacher,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 5,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    torch.save(full, tmp_path / "checkpoint.pth")
    for branch, tensors in (("teacher", teacher), ("student", student)):
        backbone = {n.removeprefix("backbone."): x.numpy() for n, x in tensors.items() if n.startswith("backbone.")}
        weights = assert_backbone_of(
            tmp_path / "checkpoint.pth", backbone, branch=branch, heads=recorded.config["heads"]
        )
        assert weights.manifest.counts()["skipped"] == len(tensors) - len(backbone)


@pytest.mark.golden
@pytest.mark.parametrize("nesting", ["teacher", "flat", "wrapped", "chunks"])
def test_training_checkpoints_of_dinov2_and_dinov3(golden, nesting, tmp_path):
    recorded = golden("v3_train_a.npz" if nesting != "chunks" else "v2_train_a.npz")
    heads = recorded.config["golden_vit" if nesting != "chunks" else "golden"]["heads"]
    teacher = recorded.under("init/teacher/")
    backbone = {n.removeprefix("backbone."): x for n, x in teacher.items() if n.startswith("backbone.")}
    content = {"teacher": teacher, "iteration": {}}
    if nesting == "flat":
        content = {"model": {f"{who}.{n}": x for who in ("student", "teacher") for n, x in teacher.items()}}
    if nesting == "wrapped":
        content = {"teacher": {n.replace("backbone.", "backbone._orig_mod."): x for n, x in teacher.items()}}
    if nesting == "chunks":
        into = ".blocks." if any(re.search(r"blocks\.\d+\.\d+\.", name) for name in teacher) else ".blocks.0."
        content = {"teacher": {n.replace(".blocks.", into): x for n, x in teacher.items()}}
    pth_writer.write(tmp_path / "teacher_checkpoint.pth", content)
    assert_backbone_of(tmp_path / "teacher_checkpoint.pth", backbone, heads=heads)


@pytest.mark.parametrize("name", ["dino_vits8", "dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16plus"])
def test_a_published_network_is_recognised_by_its_shapes(name):
    architecture = published(name)
    empty = {path: np.broadcast_to(np.float32(0), shape) for path, shape in architecture.shapes().items()}
    for to in ("official", "hf", "timm"):
        layout = store.layout_for(architecture, to)
        state = mapping.to_theirs(empty, layout, architecture.options, leftover={}, drop=".*k_proj.bias").tensors
        assert layouts.recognise(list(state), whose=to) == layout
        assert infer.architecture(state, layout, {}).name == name


def test_every_published_transformer_has_features_of_its_own():
    seen = {(family_of(name), *map(str, infer.features(options).items())) for name, options in VIT_VARIANTS.items()}
    assert len(seen) == len(VIT_VARIANTS)


class Changed:
    """An official file of a tiny DINOv3 with some tensors changed."""

    def __init__(self, folder):
        self.path = folder / "x.pth"
        drawn = tiny.weights("dinov3")
        store.save(drawn, self.path, "official")
        self.state = {name: x.copy() for name, x in pth.read(self.path).items()}

    def message(self, **options) -> str:
        pth_writer.write(self.path, self.state)
        with pytest.raises(ValueError) as error:
            store.read(self.path, **options)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def changed(tmp_path):
    return Changed(tmp_path)


def test_missing_tensors_are_named_and_counted(changed):
    for block in range(3):
        del changed.state[f"blocks.{block}.norm2.weight"]
    del changed.state["norm.weight"]
    assert "4 missing: blocks.{0..2}.norm2.weight, norm.weight" in changed.message()


@pytest.mark.parametrize("name", ["blocks.0.0.", "layers.", "blocks.x"])
def test_blocks_of_other_names(name, tmp_path):
    store.save(tiny.weights("dinov2"), tmp_path / "x.pth", "official")
    state = pth.read(tmp_path / "x.pth")
    pth_writer.write(tmp_path / "y.pth", {key.replace("blocks.", name): x for key, x in state.items()})
    with pytest.raises(ValueError, match=r"looks like official_v2 but lacks 'blocks\.0\.norm1\.weight': fetch it"):
        store.read(tmp_path / "y.pth")


def test_unused_tensors_are_an_error(changed):
    changed.state["blocks.1.attn.gate"] = np.zeros(3, np.float32)
    assert "1 unused: blocks.1.attn.gate" in changed.message()


def test_a_wrong_shape_is_an_error(changed):
    changed.state["blocks.1.mlp.fc1.bias"] = np.zeros(3, np.float32)
    assert "1 misshapen: blocks.1.mlp.fc1.bias 3 instead of 192" in changed.message()


def test_a_block_is_missing(changed):
    changed.state = {name: x for name, x in changed.state.items() if not name.startswith("blocks.1.")}
    assert "missing: blocks.1.norm1.weight" in changed.message()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(changed, bad):
    changed.state["blocks.2.mlp.fc1.weight"][1, 1] = bad
    assert "tensor blocks/mlp/fc1/kernel (3, 48, 192) holds NaN or infinity" in changed.message()


def test_another_architecture_than_asked_for_is_named(changed):
    message = changed.message(name="dinov3_vitb16")
    assert (
        "look like dinov3_custom (width 48, depth 3, patch 16, 4 registers), not like dinov3_vitb16 (width 768"
        in message
    )


def test_buffers_of_another_network(changed):
    changed.state["rope_embed.periods"][1] *= 1.5
    assert "buffer rope_embed.periods (4,) is not what this architecture has" in changed.message()


@pytest.mark.parametrize(
    "there",
    [
        {"rope_base": 100.0},
        {"rope_base": 12345.0},
        {"rope_base": None, "rope_min_period": 0.5, "rope_max_period": 90.0},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_periods_tell_how_positions_turn(there, dtype, tmp_path):
    drawn = tiny.weights("dinov3")
    changed = dataclasses.replace(drawn, architecture=drawn.architecture.with_options(**there))
    store.save(changed, tmp_path / "x.pth", "official")
    state = dict(pth.read(tmp_path / "x.pth"))
    state["rope_embed.periods"] = state["rope_embed.periods"].astype(dtype)
    pth_writer.write(tmp_path / "x.pth", state)
    options = store.read(tmp_path / "x.pth").architecture.options
    for name, value in there.items():
        assert options[name] == (
            value if value is None else pytest.approx(value, rel=1e-6 if dtype == "float32" else 1e-2)
        )


@pytest.mark.parametrize("kind", ["dinov2_swiglu", "dinov2_registers", "dinov3"])
def test_a_mask_token_may_be_absent(kind, tmp_path):
    drawn = tiny.weights(kind)
    store.save(drawn, tmp_path / "x.pth", "official")
    state = {name: x for name, x in pth.read(tmp_path / "x.pth").items() if name != "mask_token"}
    pth_writer.write(tmp_path / "x.pth", state)
    weights = store.read(tmp_path / "x.pth", heads=3)
    assert weights.manifest.layout.startswith("official")
    assert weights.manifest.counts()["zero"] == 1
    assert not weights.params["mask_token"].any()
    assert same_bits(weights.params["cls_token"], drawn.params["cls_token"])


TREES = {
    "model_state_dict": lambda state: {"model_state_dict": state},
    "ema": lambda state: {"ema": state, "model": {name: 2 * x for name, x in state.items()}},
    "model beside numbers": lambda state: {"model": state, "lr": np.float32(1), "iter": np.array(7)},
    "model is a configuration": lambda state: {"model": {"width": {}}, "state_dict": state},
    "model.backbone": lambda state: {"state_dict": {f"model.backbone.{name}": x for name, x in state.items()}},
    "backbone.model": lambda state: {f"backbone.model.{name}": x for name, x in state.items()},
    "net": lambda state: {"net": {"module": {f"module.{name}": x for name, x in state.items()}}},
}


@pytest.mark.parametrize("tree", TREES)
def test_wrappers_of_other_training_programs(changed, tree):
    before = store.read(changed.path)
    content = {
        name: np.asarray(x) if isinstance(x, np.generic) else x for name, x in TREES[tree](changed.state).items()
    }
    pth_writer.write(changed.path, content)
    weights = store.read(changed.path)
    assert all(same_bits(weights.params[path], x) for path, x in before.params.items())


@pytest.mark.parametrize("name", ["decode_head.conv.weight", "classifier.weight", "fc.weight", "decoder.norm.weight"])
def test_tensors_beside_a_backbone_are_skipped_and_listed(changed, name):
    state = {f"backbone.{label}": x for label, x in changed.state.items()}
    pth_writer.write(changed.path, state | {name: np.ones(2, np.float32)})
    manifest = store.read(changed.path).manifest
    assert manifest.counts()["skipped"] == 1
    assert [row.theirs for row in manifest.rows if row.note == "beside the backbone"] == [(name,)]


def test_two_backbones_are_not_told_apart(changed):
    state = {f"backbone.{name}": x for name, x in changed.state.items()}
    changed.state = state | {"momentum_backbone.norm.weight": np.ones(48, np.float32)}
    assert "1 unused: momentum_backbone.norm.weight" in changed.message()
    changed.state = state | {"model.backbone.norm.weight": np.ones(48, np.float32)}
    assert "holds backbone.norm.weight and model.backbone.norm.weight, both norm.weight: leave one" in changed.message()


def test_a_network_that_another_was_preferred_to_is_listed(changed):
    """timm saves the trained network beside its average."""
    before = store.read(changed.path)
    halved = {name: x / 2 for name, x in changed.state.items()}
    pth_writer.write(changed.path, {"state_dict": halved, "state_dict_ema": changed.state})
    weights = store.read(changed.path)
    assert all(same_bits(weights.params[path], x) for path, x in before.params.items())
    rows = [row for row in weights.manifest.rows if row.kind == "skipped"]
    assert [(row.theirs, row.note) for row in rows] == [(("state_dict",), "state_dict_ema is read instead")]
    assert any("state_dict_ema is read instead" in cells[-1] for cells in weights.manifest.table())


@pytest.mark.parametrize(
    ("prefix", "branch", "message"),
    [
        ("student.", "teacher", "holds a student only: load it with branch='student'"),
        ("teacher.", "student", "holds a teacher only: load it with branch='teacher'"),
        ("", "student", "holds one network, not a student beside a teacher: leave branch out"),
        ("", "pupil", "branch = 'pupil' is not one of teacher, student"),
    ],
)
def test_branches_that_are_not_there(changed, prefix, branch, message):
    changed.state = {prefix + name: x for name, x in changed.state.items()}
    assert message in changed.message(branch=branch)
    if prefix:
        assert store.read(changed.path, branch=prefix[:-1]).manifest.problem() is None


def test_a_second_name_must_be_of_the_same_tensor(tmp_path):
    store.save(tiny.weights("convnext"), tmp_path / "x.pth", "official")
    state = {name: x.copy() for name, x in pth.read(tmp_path / "x.pth").items()}
    state["norms.3.weight"][0] += 1
    pth_writer.write(tmp_path / "y.pth", state)
    with pytest.raises(ValueError, match=r"norms\.3\.weight should be a second name of another tensor, but differs"):
        store.read(tmp_path / "y.pth")


@pytest.mark.parametrize("kind", ["dino", "dinov2", "dinov3", "convnext"])
def test_a_linear_classifier_beside_a_backbone_is_skipped(kind, tmp_path):
    drawn = tiny.weights(kind)
    store.save(drawn, tmp_path / "x.pth", "official")
    width = 32 if kind == "convnext" else 48
    classifier = {"head.weight": np.zeros((5, width), np.float32), "head.bias": np.zeros(5, np.float32)}
    pth_writer.write(tmp_path / "y.pth", {**pth.read(tmp_path / "x.pth"), **classifier})
    weights = store.read(tmp_path / "y.pth", **({} if kind == "convnext" else {"heads": 3}))
    assert weights.manifest.counts()["skipped"] == 2
    assert all(same_bits(weights.params[path], x) for path, x in drawn.params.items())


def test_tensors_of_nobody(tmp_path):
    pth_writer.write(tmp_path / "x.pth", {"a.weight": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=r"of no known layout \(2 names, such as a\.weight, b\)"):
        store.read(tmp_path / "x.pth")
    pth_writer.write(tmp_path / "y.pth", {"student": {"x": np.zeros(1, np.float32)}})
    with pytest.raises(ValueError, match="holds a student only: load it with branch='student'"):
        store.read(tmp_path / "y.pth")
    pth_writer.write(tmp_path / "y.pth", {"optimizer": {"x": np.zeros(1, np.float32)}})
    with pytest.raises(ValueError, match="holds no weights of a teacher: it has optimizer"):
        store.read(tmp_path / "y.pth")


def test_heads_that_nothing_tells(tmp_path):
    store.save(tiny.weights("dinov2"), tmp_path / "x.pth", "official")
    with pytest.raises(
        ValueError, match=r"no published network of dinov2 has width 48.*give it \(--heads N, in Python heads=N\)"
    ):
        store.read(tmp_path / "x.pth")


def test_other_heads_than_those_of_a_published_network(tmp_path):
    """Shapes allow any number; the periods of rotary positions do not."""
    for name in ("dino_vits16", "dinov3_vits16"):
        weights = pretrained.drawn(name, seed=0)
        store.save(weights, tmp_path / f"{name}.pth", "official")
    with pytest.warns(UserWarning, match="the weights look like dino_vits16, which has 6 heads: 3 are taken, as asked"):
        assert store.read(tmp_path / "dino_vits16.pth", heads=3).architecture.options["heads"] == 3
    with pytest.raises(ValueError, match="the weights have rotary positions of 6 heads, not 3: leave the heads out"):
        store.read(tmp_path / "dinov3_vits16.pth", heads=3)


def test_manifest_puts_names_together():
    names = [f"blocks.{i}.norm{j}.weight" for i in range(12) for j in (1, 2)]
    assert collapse(names) == ["blocks.{0..11}.norm1.weight", "blocks.{0..11}.norm2.weight"]
    assert in_braces(["a.q.w", "a.k.w", "a.v.w"]) == "a.{q, k, v}.w"
    assert in_braces(["x", "y"]) == "x + y"
    assert in_braces([]) == "-"


def test_params_are_ready_for_jax(tmp_path):
    store.save(tiny.weights("dinov2_swiglu"), tmp_path / "x.pth", "official")
    weights = store.read(tmp_path / "x.pth", heads=3)
    shapes = jax.tree.map(np.shape, weights.tree())
    assert shapes["blocks"]["mlp"]["w1"]["kernel"] == (3, 48, 128)
