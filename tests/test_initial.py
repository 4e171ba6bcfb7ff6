"""Runs that start from given weights instead of the seed."""

import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dino_jax import build, config, initial, sharding
from dino_jax import state as states
from dino_jax.checkpoint import with_sharding
from dino_jax.gram_teacher import restore_snapshot
from dino_jax.metrics import read_metrics
from dino_jax.models import VARIANTS, VisionTransformer
from dino_jax.models.stages import STATS
from tests.tiny_recipe import get_config


@pytest.fixture(scope="module")
def networks():
    return build.networks(get_config(), shards=1)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


STATISTICS = ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))


def loader(backbone, params, name="tiny"):
    """Returns what stands in for `dino_jax.load`."""
    mean, std = STATISTICS
    return lambda path: (SimpleNamespace(name=name, backbone=backbone, mean=mean, std=std), params)


def test_drawn_is_what_a_new_state_holds(networks, mesh):
    state = states.init(networks, build.optimizer(get_config().phases["pretrain"]), mesh, seed=3)
    jax.tree.map(np.testing.assert_array_equal, initial.drawn(networks, mesh, seed=3), state.student["backbone"])


def test_loaded_goes_into_student_and_teacher(networks, mesh, tmp_path):
    weights = initial.drawn(networks, mesh, seed=5)
    found = initial.loaded(
        str(tmp_path), networks, mesh, load=loader(networks.backbone, weights), statistics=STATISTICS
    )
    state = states.init(networks, build.optimizer(get_config().phases["pretrain"]), mesh, seed=3)
    after = states.with_backbone(state, found)
    for network in (after.student, after.teacher):
        jax.tree.map(np.testing.assert_array_equal, network["backbone"], weights)
    jax.tree.map(np.testing.assert_array_equal, after.student["dino_head"], state.student["dino_head"])
    # Copies: the step donates its state.
    assert after.student["backbone"]["cls_token"] is not after.teacher["backbone"]["cls_token"]


def test_running_statistics_are_loaded_too(mesh, tmp_path):
    """A ResNet's come with its weights, into both networks, and go into its snapshots."""
    c = get_config()
    c.model = config.model("dino_resnet50", depths=(1, 1), channels=4)
    config.set_phases(c, pretrain=config.following(c.phases.pretrain, loss={"ibot": 0.0}))
    networks = build.networks(c, shards=1)
    weights = jax.tree.map(lambda x: x + 0.5, initial.drawn(networks, mesh, seed=5))
    load = loader(networks.backbone, weights)
    found = initial.loaded(str(tmp_path), networks, mesh, load=load, statistics=STATISTICS)
    state = states.init(networks, build.optimizer(c.phases["pretrain"]), mesh, seed=3)
    after = states.with_backbone(state, found)
    jax.tree.map(np.testing.assert_array_equal, states.teacher_weights(after), weights)
    jax.tree.map(np.testing.assert_array_equal, after.student["backbone"], after.teacher["backbone"])
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats["student"], weights[STATS])
    del weights[STATS]["stem"]["norm"]["var"]
    with pytest.raises(ValueError, match="batch_stats/stem/norm/var is absent there"):
        initial.loaded(str(tmp_path), networks, mesh, load=load, statistics=STATISTICS)


def test_other_training_options_are_no_other_architecture(networks):
    options = {name: getattr(networks.backbone, name) for name in get_config().model}
    other = VisionTransformer(**options | {"drop_path": 0.0, "layer_scale": 1e-5, "remat": "full"})
    initial.check_architecture("x", SimpleNamespace(name="tiny", backbone=other), networks.backbone)


@pytest.mark.parametrize(
    ("name", "recipe", "there", "fix"),
    [
        ("dino_vits16", {}, {"norm_epsilon": 1e-12}, None),
        ("dino_vits16", {"drop_path": 0.1, "drop_path_ramp": True}, {}, None),
        ("dinov2_vits14", {}, {"pos_grid": 16}, "set --config.model.pos_grid=16"),
        (
            "dinov2_vits14",
            {"width": 768},
            {"pos_grid": 16},
            "choose the recipe's variant dinov2_vits14, or other weights",
        ),
        ("dinov3_custom", {}, {"width": 48, "heads": 3}, "set --config.model.width=48 --config.model.heads=3"),
    ],
)
def test_advice_about_other_options_leads_on(name, recipe, there, fix):
    options = VARIANTS["dinov3_vits16" if "custom" in name else name]
    model = SimpleNamespace(name=name, backbone=VisionTransformer(**options | there))
    expected = VisionTransformer(**options | recipe)
    if fix is None:
        initial.check_architecture("x", model, expected)
        return
    with pytest.raises(ValueError, match=f": {fix}$"):
        initial.check_architecture("x", model, expected)


def test_problems_in_one_line(networks, mesh, tmp_path):
    weights, path = initial.drawn(networks, mesh, seed=5), str(tmp_path)

    def message(where, model, params):
        with pytest.raises(ValueError) as raised:
            initial.loaded(where, networks, mesh, load=loader(model, params, "dinov3_vitb16"), statistics=STATISTICS)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "not found; set it to the file or folder" in message(path + "/absent", networks.backbone, weights)
    options = {name: getattr(networks.backbone, name) for name in get_config().model}
    wide = VisionTransformer(**options | {"width": 64})
    assert "looks like dinov3_vitb16, not like config.model: model.width is 64 there and 32 here" in message(
        path, wide, weights
    )
    assert "(a VisionTransformer): choose" in message(path, SimpleNamespace(in_channels=3), weights)
    short = {name: leaf for name, leaf in weights.items() if name != "cls_token"}
    assert "cls_token is absent there and (32,) here" in message(path, networks.backbone, short)
    load = loader(networks.backbone, weights)
    with pytest.raises(ValueError, match=r"set --config.data.mean=0.4,0.5,0.6 --config.data.std=0.2,0.2,0.3$"):
        initial.loaded(path, networks, mesh, load=load, statistics=((0.5,) * 3, (0.25,) * 3))


def lines(workdir):
    return (workdir / "metrics.jsonl").read_bytes().splitlines()


@pytest.mark.slow
def test_a_run_continues_from_the_weights_of_another(program, uninterrupted, tmp_path):
    """Its backbone rests at first; killed before its first checkpoint, it does without the file it started from."""
    weights = tmp_path / "released"
    shutil.copytree(uninterrupted, weights)
    changes = {
        "init__weights": weights / "gram_teacher" / "4",
        "phase_order": "('pretrain',)",
        "phases__pretrain__optim__freeze_backbone": 3,
        "log__health_every": 100,
    }
    killed = program.train_until("SIGKILL", "recorded", 2, tmp_path / "run", **changes)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert f"student and teacher: from {weights}/gram_teacher/4; heads: new, from seed 0" in killed.stderr
    # What it started from is what it was given, not what the seed would draw.
    networks = build.networks(get_config(), shards=1)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    like = with_sharding(jax.eval_shape(networks.backbone_weights, jax.random.key(0)), mesh)
    folders = (weights / "gram_teacher" / "4", tmp_path / "run" / "gram_teacher" / "0")
    jax.tree.map(np.testing.assert_array_equal, *(restore_snapshot(folder, like) for folder in folders))
    before = lines(tmp_path / "run")
    shutil.rmtree(weights)
    finished = program.train(tmp_path / "run", **changes)
    assert finished.returncode == 0, finished.stderr
    assert f"from {tmp_path}/run/gram_teacher/0, a copy of {weights}/gram_teacher/4" in finished.stderr
    assert "teacher as loaded" in finished.stdout
    assert lines(tmp_path / "run")[:2] == before[:2] != []
    moved = [record["update_norm/backbone"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert moved[:3] == [0, 0, 0]
    assert min(moved[3:8]) > 0
