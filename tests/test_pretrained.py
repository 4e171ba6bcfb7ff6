"""`dino_jax.load`: names, files, runs, channels, types, and what it says of bad input."""

import dataclasses
import doctest
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import dino_jax
from dino_jax import pretrained
from dino_jax.checksum import sealed
from dino_jax.gram_teacher import save_snapshot
from dino_jax.models import VARIANTS
from dino_jax.models.extractor import IMAGENET_MEAN
from dino_jax.recipe import load as load_recipe
from dino_jax.weights import pth_writer, store
from dino_jax.weights.network import flatten
from tests.weights import tiny


def test_the_example_of_the_docstring_runs():
    example = doctest.DocTestFinder().find(pretrained.load, globs={})[0]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(example)
    assert runner.summarize().attempted > 4
    assert not runner.summarize().failed


run_jitted = jax.jit(lambda model, images: model(images))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Returns an official file of a tiny DINOv3."""
    path = tmp_path_factory.mktemp("official") / "dinov3_pretrain.pth"
    store.save(tiny.weights("dinov3"), path, "official")
    return path


def test_loads_a_file_and_computes_features(file):
    model, params = dino_jax.load(file)
    assert model.name == "dinov3_custom"
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    images = jnp.zeros((1, 32, 48, 3))
    assert run_jitted(model, images)["patches"].shape == (1, 2, 3, 48)


def test_loads_in_bfloat16(file):
    model, params = dino_jax.load(file, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    exact, _ = dino_jax.load(file)
    images = jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    rounded, expected = (run_jitted(m, images)["cls"].astype(jnp.float32) for m in (model, exact))
    assert jnp.linalg.norm(rounded - expected) < 0.05 * jnp.linalg.norm(expected)


def test_other_channels_are_spread_from_three(file):
    model, params = dino_jax.load(file, in_chans=5)
    rgb, _ = dino_jax.load(file)
    kernel, three = params["patch_embed"]["kernel"], rgb.params["patch_embed"]["kernel"]
    assert kernel.shape == (16, 16, 5, 48)
    np.testing.assert_allclose(kernel[:, :, 4], three[:, :, 1] * 3 / 5, rtol=1e-6)
    assert model.mean == (*rgb.mean, *rgb.mean[:2])
    assert dino_jax.load(file, in_chans=1)[0].mean == pytest.approx((np.mean(rgb.mean),))


def test_channels_that_do_not_fit(tmp_path):
    drawn = tiny.weights("dinov3")
    kernel = drawn.params["patch_embed/kernel"]
    drawn.params["patch_embed/kernel"] = np.concatenate([kernel, kernel], axis=2)
    store.save(drawn, tmp_path / "six.pth", "official")
    with pytest.raises(ValueError, match="are for 6 channels, not 3: load them with in_chans=6"):
        dino_jax.load(tmp_path / "six.pth", in_chans=3)
    model, _ = dino_jax.load(tmp_path / "six.pth")
    assert model.backbone.in_channels == 6
    assert model.mean == IMAGENET_MEAN * 2


@pytest.mark.parametrize(
    "name",
    [
        "dinov3_vitl16_pretrain_sat493m-x.pth",
        "dinov3-vitl16-pretrain-sat493m/weights.pth",
        "models--facebook--dinov3-vitl16-pretrain-sat493m/snapshots/0a1b/weights.pth",
    ],
)
def test_satellite_weights_have_statistics_of_their_own(file, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.read_bytes())
    model, _ = dino_jax.load(path)
    assert (model.mean, model.std) == ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))


def test_the_name_of_a_file_says_more_than_that_of_its_folder(file, tmp_path):
    path = tmp_path / "sat493m" / "dinov3_vitl16_pretrain_lvd1689m-x.pth"
    path.parent.mkdir()
    path.write_bytes(file.read_bytes())
    assert dino_jax.load(path)[0].mean == IMAGENET_MEAN


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_statistics_beside_a_file_are_found(tmp_path, to):
    drawn = dataclasses.replace(tiny.weights("dinov2"), mean=(0.1, 0.2, 0.3))
    store.save(drawn, tmp_path / "x", to)
    assert dino_jax.load(tmp_path / "x" / "model.safetensors")[0].mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("to", ["orbax", "hf"])
def test_the_bits_of_the_images_stay_with_the_weights(tmp_path, to):
    store.save(dataclasses.replace(tiny.weights("dinov2"), bits=16), tmp_path / "x", to)
    assert dino_jax.load(tmp_path / "x")[0].bits == 16
    file = tmp_path / "x" / "dino_jax.json"
    file.write_text(file.read_text().replace('"bits": 16', '"bits": 12'))
    with pytest.raises(ValueError, match=r"dino_jax\.json is damaged: bits = 12 is not 0, 8 or 16"):
        dino_jax.load(tmp_path / "x")


def test_statistics_can_be_given(file):
    assert dino_jax.load(file, mean=(0.1, 0.2, 0.3))[0].mean == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match="mean has 1 numbers for 3 channels"):
        dino_jax.load(file, mean=(0.1,))
    with pytest.raises(ValueError, match="must be positive"):
        dino_jax.load(file, std=(0.1, 0.0, 0.3))
    with pytest.raises(ValueError, match=r"std = \(nan, 1, 1\) is not a list of finite numbers"):
        dino_jax.load(file, std=(float("nan"), 1, 1))
    mean = dino_jax.load(file, mean=np.full(3, 0.5, np.float32))[0].mean
    assert json.dumps(mean) == "[0.5, 0.5, 0.5]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float33"}, "dtype = 'float33' is not one of float32, bfloat16"),
        ({"dtype": "float64"}, "dtype = 'float64' is not one of float32, bfloat16, float16"),
        ({"dtype": "int8"}, "dtype = 'int8' is not one of float32, bfloat16"),
        ({"remat": "x"}, "remat = 'x' is not one of none, matmuls, full"),
        ({"attention": "x"}, "attention = 'x' is not one of xla, cudnn"),
        ({"heads": "3"}, "cannot have heads = '3': give a fitting int"),
        ({"depht": 3}, "has no option 'depht'; did you mean depth"),
        ({"branch": "both"}, "branch = 'both' is not one of teacher, student"),
    ],
)
def test_options_that_are_none(file, options, message):
    with pytest.raises(ValueError, match=message):
        dino_jax.load(file, **options)


def test_random_weights_are_announced():
    with pytest.warns(UserWarning, match=r"dino_vits16 has random weights \(seed 3\): give weights=PATH"):
        model, _ = dino_jax.load("dino_vits16", seed=3, depth=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = dino_jax.load("random:dino_vits16", seed=3, depth=1)
        named, _ = dino_jax.load("dino_vits16", weights="random:dino_vits16", seed=3, depth=1)
    for other in (again, named):
        assert all((x == y).all() for x, y in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True))


def test_random_weights_of_another_architecture():
    with pytest.raises(ValueError, match=r"random:dino_vits16 look like dino_vits16 .*, not like dino_vits8"):
        dino_jax.load("dino_vits8", weights="random:dino_vits16", depth=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov3_vitl", "is neither a file or folder nor an architecture: did you mean dinov3_vitl16"),
        ("random:dinov2_vits", "there is no architecture 'dinov2_vits'; did you mean dinov2_vits14"),
        ("vision", "is neither a file or folder nor an architecture: architectures are dino_vits16"),
        ("/nowhere/x.pth", "there are no weights at /nowhere/x.pth: check the path"),
    ],
)
def test_names_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        dino_jax.load(name)


def test_an_architecture_is_no_file():
    with pytest.raises(ValueError, match="dinov2_vits14 is an architecture, not a file or folder: give the path of"):
        pretrained.read("dinov2_vits14")


def test_weights_of_another_architecture(file):
    with pytest.raises(ValueError, match=r"look like dinov3_custom \(width 48.*not like dinov3_vitb16 \(width 768"):
        dino_jax.load("dinov3_vitb16", weights=file)
    with pytest.raises(ValueError, match="there is no architecture 'dinov3_vitx16'"):
        dino_jax.load("dinov3_vitx16", weights=file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a workdir with a snapshot, as a run leaves them."""
    workdir = tmp_path_factory.mktemp("run")
    drawn = tiny.weights("dinov3")
    options = {f"model.{key}": x for key, x in drawn.architecture.options.items()}
    config = {"seed": 0, "data.mean": [0.1, 0.2, 0.3], "data.std": [1.0, 2.0, 3.0]} | options
    config["model.attention"] = "cudnn"  # what trained it may not be there to use it
    (workdir / "config.json").write_text(json.dumps(config))
    save_snapshot(workdir / "gram_teacher" / "7", jax.tree.map(jnp.asarray, drawn.tree()))
    return workdir, drawn


def test_loads_a_snapshot_of_a_run(run):
    workdir, drawn = run
    model, params = dino_jax.load(workdir / "gram_teacher" / "7")
    assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert model.backbone.attention == "xla"
    with pytest.raises(ValueError, match="is a snapshot of the teacher: leave branch out"):
        dino_jax.load(workdir / "gram_teacher" / "7", branch="student")
    assert dino_jax.load(workdir / "gram_teacher" / "7", attention="cudnn")[0].backbone.attention == "cudnn"
    loaded = flatten(params)
    assert all(np.array_equal(loaded[path], x) for path, x in drawn.params.items())


@pytest.mark.parametrize("kind", ["dino", "resnet"])
def test_loads_teacher_or_student_of_the_newest_checkpoint(kind, tmp_path):
    networks = {branch: tiny.weights(kind, seed=seed) for seed, branch in enumerate(("student", "teacher"))}
    options = {f"model.{key}": x for key, x in networks["teacher"].architecture.options.items()}
    statistics = {"data.mean": [0.5] * 3, "data.std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0} | statistics | options))
    state = {branch: {"backbone": drawn.tree(), "dino_head": {"x": np.ones(2)}} for branch, drawn in networks.items()}
    state["batch_stats"] = {branch: drawn.stats() for branch, drawn in networks.items()} if kind == "resnet" else {}
    for step in (2, 10):
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = jax.tree.map(lambda x: jnp.asarray(x) * (step == 10), state)  # noqa: B023
            checkpointer.save(tmp_path / "checkpoints" / str(step) / "state", sealed(arrays))
        (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text("{}")
    for branch, drawn in networks.items():
        model, params = dino_jax.load(tmp_path, branch=branch)
        loaded = flatten(params) | flatten({"batch_stats": model.batch_stats})
        assert loaded.keys() == drawn.params.keys()
        assert all(np.array_equal(loaded[path], x) for path, x in drawn.params.items())
    assert not jax.tree.leaves(dino_jax.load(tmp_path / "checkpoints" / "2")[1])[0].any()


@pytest.mark.parametrize(
    ("recipe", "name", "family"),
    [
        ("configs/v3_imagenette.py:gpu", "dinov3_custom", "dinov3"),  # patches of 8
        ("configs/v3_imagenette.py:gpu_v2", "dinov2_custom", "dinov2"),
        ("configs/v3_imagenette.py:gpu_v1", "dino_vits8", "dino"),
        ("configs/small_data.py:v2", "dinov2_custom", "dinov2"),
        ("configs/v2_vitg14.py", "dinov2_vitg14", "dinov2"),
        ("configs/v1_resnet50.py", "dino_resnet50", "resnet"),
        ("configs/continue_from.py:dinov3_convnext_small", "dinov3_convnext_small", "convnext"),
        ("configs/v3_vits16.py", "dinov3_vits16", "dinov3"),
    ],
)
def test_runs_are_of_the_family_of_their_recipe(recipe, name, family):
    options = json.loads(json.dumps(load_recipe(recipe, {}).model.to_dict()))  # as config.json keeps them
    found = pretrained.architecture_of_run(options)
    assert (found.name, found.family) == (name, family)


def test_heads_are_those_that_are_stated(run, tmp_path):
    workdir, drawn = run
    for to in ("orbax", "hf"):
        store.save(drawn, tmp_path / to, to)
    for path in (workdir / "gram_teacher" / "7", tmp_path / "orbax", tmp_path / "hf"):
        with pytest.raises(ValueError, match=r"say that they have \d heads, not 1: leave the heads out"):
            pretrained.read(path, heads=1)


@pytest.mark.parametrize(
    "options", [{"registers": 0}, {"qkv_bias": False}, {"layer_scale": 0.0}, {"depth": 2}, {"ffn": "swiglu"}]
)
def test_options_that_make_another_network(run, tmp_path, options):
    workdir, drawn = run
    store.save(drawn, tmp_path / "ours", "orbax")
    for path in (workdir / "gram_teacher" / "7", tmp_path / "ours"):
        with pytest.raises(ValueError, match=r"do not fit these options: .* is .* there and .* here"):
            dino_jax.load(path, **options)


def test_names_of_other_places():
    with pytest.raises(ValueError, match=r"lvd142m: check the path \(what is on a hub must be downloaded"):
        dino_jax.load("timm/vit_small_patch14_dinov2.lvd142m")
    with pytest.raises(ValueError, match=r"facebook/dinov2-base: check the path \(what is on a hub must be downloaded"):
        dino_jax.load("facebook/dinov2-base")
    with pytest.raises(ValueError, match="did you mean dinov2_vits14"):
        dino_jax.load("vit_small_patch14_dinov2.lvd142m")


def test_runs_that_cannot_be_used(run, tmp_path):
    workdir, _ = run
    with pytest.raises(ValueError, match="has saved no checkpoint yet"):
        dino_jax.load(workdir)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(ValueError, match="is a checkpoint without its run"):
        dino_jax.load(tmp_path / "7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds nothing: a folder of weights has config\.json"):
        dino_jax.load(tmp_path / "empty")


def test_folders_that_are_no_weights_say_what_they_are(file, tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no config\.json beside model\.safetensors.*give the file itself"):
        dino_jax.load(tmp_path / "alone")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match=r"make a file of it by python -m .*format_utils dcp_to_torch .*/dcp FILE"):
        dino_jax.load(tmp_path / "dcp")


@pytest.mark.slow
def test_loads_the_teacher_of_a_run(uninterrupted):
    model, params = dino_jax.load(uninterrupted)
    student, of_student = dino_jax.load(uninterrupted, branch="student")
    assert flatten(params).keys() == flatten(of_student).keys()
    assert not np.array_equal(params["cls_token"], of_student["cls_token"])
    side = 2 * model.patch_size
    assert jnp.isfinite(model(jnp.ones((1, side, side, 3)))["cls"]).all()
    newest = max((uninterrupted / "checkpoints").iterdir(), key=lambda step: int(step.name))
    assert np.array_equal(dino_jax.load(newest)[1]["cls_token"], params["cls_token"])
    assert student.name == model.name


def test_hostile_and_damaged_files_are_one_line(tmp_path):
    (tmp_path / "page.pth").write_text("<html>")
    pth_writer.write(tmp_path / "nothing.pth", {"epoch": {}})
    for name in ("page.pth", "nothing.pth"):
        with pytest.raises(ValueError) as error:
            dino_jax.load("dinov3_vits16", weights=tmp_path / name)
        assert "\n" not in str(error.value)


def test_published_names_of_all_three_generations():
    families = {name.split("_")[0] for name in VARIANTS}
    assert families == {"dino", "dinov2", "dinov3"}
