"""The recipes: each loads and is valid, and the published ones hold the published numbers."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from dino_jax import build, config, recipe
from dino_jax.phases import by_size, in_order
from dino_jax.validate import validate

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def load(name: str, **changes: str):
    return recipe.load(str(ROOT / "configs" / f"{name}.py"), changes)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid(name):
    validate(load(name))


GENERATIONS = ("v1", "v2", "v3")
TRANSFORMERS = ("dino_vits8", "dinov2_vitb14", "dinov2_vitg14_reg", "dinov3_vitl16", "dinov3_vit7b16")
VARIANTS = [
    *((recipe, variant) for recipe in ("quickstart", "small_data") for variant in GENERATIONS),
    *(("continue_from", variant) for variant in (*TRANSFORMERS, "dino_resnet50", "dinov3_convnext_tiny")),
    *(("v3_imagenette", f"{device}{kind}") for device in ("cpu", "gpu") for kind in ("", "_no_gram", "_v2", "_v1")),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_variant_is_valid_and_its_networks_can_be_built(name, variant):
    c = recipe.load(f"{ROOT}/configs/{name}.py:{variant}", {})
    validate(c)
    networks = build.networks(c, shards=1)
    with_ibot = any(c.phases[phase].loss.ibot for phase in c.phase_order)
    assert (networks.ibot_head is not None) == (with_ibot and not c.share_head)


@pytest.mark.parametrize(
    ("recipe_and_variant", "message"),
    [
        ("quickstart:v4", "has no variant 'v4': use v1, v2, v3"),
        ("continue_from:dinov3_vits", "there is no model 'dinov3_vits'; there are dino_vits16"),
    ],
)
def test_unknown_variant_is_one_line(recipe_and_variant, message):
    name, variant = recipe_and_variant.split(":")
    with pytest.raises(ValueError, match=message):
        recipe.load(f"{ROOT}/configs/{name}.py:{variant}", {})


def test_quickstart_is_dinov3_unless_asked():
    assert recipe.flatten(load("quickstart")) == recipe.flatten(recipe.load(f"{ROOT}/configs/quickstart.py:v3", {}))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_headed_by_paper_hardware_and_command(name):
    header = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert header
    for heading in ("Paper:", "Hardware:", "Command"):
        assert heading in header, f"{name}: no {heading}"
    assert re.search(r"not run|score|quickstart", header), f"{name}: neither a score nor 'not run'"
    assert f"--config configs/{name}.py" in header


@pytest.mark.parametrize("name", RECIPES)
def test_every_phase_builds_its_schedules(name):
    for phase in in_order(load(name)):
        schedules = build.phase_schedules(phase.options)
        for step in (0, 1, phase.options.steps // 2, phase.options.steps - 1):
            assert all(np.isfinite(value) for value in build.hyper(schedules, step).values())


# Values of the recipe by key, from the papers and the references' public configurations.
PUBLISHED = {
    "v3_7b": {
        "precision": "bfloat16",
        "data.homogeneous_share": 0.1,
        "phases.pretrain.masks.drawn_sizes": False,
        "model.width": 4096,
        "model.depth": 40,
        "model.heads": 32,
        "model.patch_size": 16,
        "model.registers": 4,
        "model.drop_path": 0.4,
        "model.rope_base": 100.0,
        "model.rope_rescale": 2.0,
        "model.rope_shift": 0.0,
        "model.rope_jitter": 1.0,
        "model.untie_global_and_local_norms": True,
        "model.untie_cls_and_patch_norms": False,
        "dino_head.prototypes": 262_144,
        "dino_head.hidden": 8192,
        "dino_head.bottleneck": 512,
        "ibot_head.prototypes": 98_304,
        "ibot_head.hidden": 4096,
        "ibot_head.bottleneck": 384,
        "phases.pretrain.steps": 1_000_000,
        "phases.pretrain.batch_size": 4096,
        "phases.pretrain.crops.global_size": 256,
        "phases.pretrain.crops.global_scale": (0.32, 1.0),
        "phases.pretrain.crops.local_size": 112,
        "phases.pretrain.crops.local_scale": (0.05, 0.32),
        "phases.pretrain.crops.local_number": 8,
        "phases.pretrain.crops.horizontal_flips": False,
        "phases.pretrain.loss.koleo_group_size": 16,
        "phases.pretrain.optim.b1": 0.9,
        "phases.pretrain.optim.b2": 0.99,
        "phases.pretrain.optim.clip_norm": 30.0,
        "phases.pretrain.optim.layer_decay": 0.98,
        "phases.pretrain.optim.patch_embed_multiplier": 0.2,
        "phases.pretrain.optim.freeze_last_layer": 5000,
        "phases.pretrain.gram.teacher": "none",
        "phases.gram.batch_size": 4096,
        "phases.gram.crops.global_size": 256,
        "phases.gram.crops.horizontal_flips": False,
        "phases.gram.gram.teacher": "ema",
        "phases.gram.gram.crop_size": 512,
        "phases.gram.gram.refresh_every": 10_000,
        "phases.gram.gram.first_refresh": 10_000,
        "phases.gram.gram.max_refreshes": 3,
        "phases.gram.gram.antialias": False,
        "phases.gram.gram.image_level": True,
        "phases.gram.gram.tokens": "all",
        "phases.gram.optim.b2": 0.99,
        "phases.gram.optim.clip_norm": 30.0,
        "phases.gram.optim.layer_decay": 0.98,
        "phases.gram.optim.freeze_last_layer": 0,
        "phases.high_resolution.steps": 30_000,
        "phases.high_resolution.batch_size": 2048,
        "phases.high_resolution.loss.koleo_group_size": 16,
        "phases.high_resolution.gram.refresh_every": 0,
    },
    "v3_vitl16": {
        "model.width": 1024,
        "model.depth": 24,
        "model.heads": 16,
        "model.drop_path": 0.3,
        "model.rope_rescale": 1.0,
        "dino_head.prototypes": 65_536,
        "dino_head.hidden": 2048,
        "dino_head.bottleneck": 256,
        "ibot_head.prototypes": 65_536,
        "ibot_head.hidden": 2048,
        "ibot_head.bottleneck": 256,
        "phases.pretrain.steps": 125_000,
        "phases.pretrain.batch_size": 2048,
        "phases.pretrain.crops.global_size": 224,
        "phases.pretrain.crops.local_size": 96,
        "phases.pretrain.crops.local_number": 8,
        "phases.pretrain.crops.horizontal_flips": True,
        "phases.pretrain.optim.b2": 0.999,
        "phases.pretrain.optim.clip_norm": 3.0,
        "phases.pretrain.optim.layer_decay": 0.9,
        "phases.pretrain.optim.patch_embed_multiplier": 0.2,
        "phases.pretrain.optim.freeze_last_layer": 1250,
        "phases.gram.gram.crop_size": 448,
        "phases.gram.gram.refresh_every": 1250,
    },
    "v3_vits16": {
        "model.width": 384,
        "model.depth": 12,
        "model.heads": 6,
        "model.drop_path": 0.1,
        "dino_head.prototypes": 65_536,
        "phases.pretrain.batch_size": 512,
        "phases.pretrain.steps": 250_000,
        "phases.pretrain.crops.global_size": 224,
        "phases.gram.gram.crop_size": 448,
    },
}
DINO = {
    "dino_head.prototypes": 65_536,
    "dino_head.hidden": 2048,
    "dino_head.bottleneck": 256,
    "dino_head.gain": "frozen",
    "phases.pretrain.targets": "centering",
    "phases.pretrain.center_momentum": 0.9,
    "phases.pretrain.student_temperature": 0.1,
    "phases.pretrain.loss.dino": 1.0,
    "phases.pretrain.loss.ibot": 0.0,
    "phases.pretrain.loss.koleo": 0.0,
    "phases.pretrain.optim.clip": "tensor",
    "phases.pretrain.optim.clip_norm": 3.0,
    "phases.pretrain.optim.layer_decay": 1.0,
    "phases.pretrain.optim.patch_embed_multiplier": 1.0,
    "phases.pretrain.optim.last_layer_rests": True,
    "phases.pretrain.optim.b1": 0.9,
    "phases.pretrain.optim.b2": 0.999,
    "phases.pretrain.crops.global_size": 224,
    "phases.pretrain.crops.local_size": 96,
    "phase_order": ("pretrain",),
}
DINOV2 = {
    "dino_head.gain": "trained",
    "phases.pretrain.loss.dino": 1.0,
    "phases.pretrain.loss.ibot": 1.0,
    "phases.pretrain.loss.koleo": 0.1,
    "phases.pretrain.masks.probability": 0.5,
    "phases.pretrain.masks.ratio": (0.1, 0.5),
    "phases.pretrain.masks.drawn_sizes": True,
    "phases.pretrain.crops.global_scale": (0.32, 1.0),
    "phases.pretrain.crops.local_scale": (0.05, 0.32),
    "phases.pretrain.optim.clip": "module",
    "phases.pretrain.optim.clip_norm": 3.0,
    "phases.pretrain.optim.patch_embed_multiplier": 0.2,
    "phases.pretrain.optim.freeze_last_layer": 1250,
    "phases.pretrain.optim.last_layer_rests": False,
}
LARGE_DINOV2 = DINOV2 | {
    "share_head": False,
    "dino_head.prototypes": 131_072,
    "dino_head.bottleneck": 384,
    "ibot_head.prototypes": 131_072,
    "ibot_head.bottleneck": 256,
    "ibot_head.gain": "trained",
    "model.drop_path": 0.4,
    "model.pos_grid": 37,
    "phases.pretrain.targets": "sinkhorn_knopp",
    "phases.pretrain.sinkhorn_iterations": 3,
    "phases.pretrain.steps": 625_000,
    "phases.pretrain.batch_size": 3072,
    "phases.pretrain.crops.local_size": 98,
    "phases.pretrain.optim.layer_decay": 1.0,
    "phases.high_resolution.crops.global_size": 518,
    "phases.high_resolution.steps": 10_000,
    "phase_order": ("pretrain", "high_resolution"),
}
PUBLISHED |= {
    "v1_vits16": DINO
    | {
        "model.width": 384,
        "model.patch_size": 16,
        "model.layer_scale": 0.0,
        "model.drop_path": 0.1,
        "model.drop_path_ramp": True,
        "phases.pretrain.batch_size": 512,
        "phases.pretrain.steps": 250_200,
        "phases.pretrain.crops.global_scale": (0.4, 1.0),
        "phases.pretrain.crops.local_scale": (0.05, 0.4),
        "phases.pretrain.crops.local_number": 8,
        "phases.pretrain.optim.name": "adamw",
        "phases.pretrain.optim.freeze_last_layer": 2502,
    },
    "v1_vitb8": DINO
    | {
        "model.width": 768,
        "model.patch_size": 8,
        "phases.pretrain.batch_size": 1024,
        "phases.pretrain.steps": 300 * 1251,
        "phases.pretrain.crops.global_scale": (0.25, 1.0),
        "phases.pretrain.crops.local_scale": (0.05, 0.25),
        "phases.pretrain.crops.local_number": 10,
        "phases.pretrain.optim.freeze_last_layer": 3 * 1251,
    },
    "v1_resnet50": DINO
    | {
        "model.depths": (3, 4, 6, 3),
        "phases.pretrain.optim.name": "sgd",
        "phases.pretrain.crops.global_scale": (0.14, 1.0),
        "phases.pretrain.crops.local_scale": (0.05, 0.14),
    },
    "v2_vitl16_fast": DINOV2
    | {
        "model.width": 1024,
        "model.patch_size": 16,
        "model.registers": 0,
        "model.drop_path": 0.3,
        "share_head": True,
        "dino_head.prototypes": 65_536,
        "dino_head.bottleneck": 256,
        "phases.pretrain.targets": "centering",
        "phases.pretrain.steps": 125_000,
        "phases.pretrain.batch_size": 2048,
        "phases.pretrain.crops.local_size": 96,
        "phases.pretrain.optim.layer_decay": 0.9,
        "phase_order": ("pretrain",),
    },
    "v2_vitl14": LARGE_DINOV2
    | {"model.width": 1024, "model.ffn": "swiglu", "phases.pretrain.loss.koleo_group_size": 32},
    "v2_vitg14": LARGE_DINOV2
    | {"model.width": 1536, "model.ffn": "swiglu", "phases.pretrain.loss.koleo_group_size": 12},
}
# In every published phase of DINOv3: DINO / iBOT / KoLeo 1 / 1 / 0.1, half of the global crops masked by 0.1 to 0.5.
SHARED = {
    "student_temperature": 0.1,
    "sinkhorn_iterations": 3,
    "loss.dino": 1.0,
    "loss.ibot": 1.0,
    "loss.koleo": 0.1,
    "masks.probability": 0.5,
    "masks.ratio": (0.1, 0.5),
    "optim.lr_scaling": "sqrt_wrt_1024",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    flat = recipe.flatten(load(name))
    expected = PUBLISHED[name]
    if name.startswith("v3"):
        phases = ("pretrain", "gram", "high_resolution") if name == "v3_7b" else ("pretrain", "gram")
        shared = {f"phases.{phase}.{key}": value for phase in phases for key, value in SHARED.items()}
        expected = expected | shared | {"phase_order": phases}
    assert {key: flat[key] for key in expected} == expected


# What the optimizer gets: (recipe, phase, schedule, step in the phase, value).
SCHEDULED = [
    # 5e-5 x 4 sqrt(4096 / 1024) = 4e-4, reached after 100 k steps and kept.
    ("v3_7b", "pretrain", "lr", 0, 0.0),
    ("v3_7b", "pretrain", "lr", 50_000, 2e-4),
    ("v3_7b", "pretrain", "lr", 100_000, 4e-4),
    ("v3_7b", "pretrain", "lr", 999_999, 4e-4),
    ("v3_7b", "pretrain", "last_layer_lr", 4_999, 0.0),
    ("v3_7b", "pretrain", "last_layer_lr", 5_000, 2e-5),
    ("v3_7b", "pretrain", "weight_decay", 0, 0.04),
    ("v3_7b", "pretrain", "weight_decay", 999_999, 0.04),
    ("v3_7b", "pretrain", "momentum", 0, 0.994),
    ("v3_7b", "pretrain", "momentum", 999_999, 0.994),
    ("v3_7b", "pretrain", "teacher_temperature", 0, 0.04),
    ("v3_7b", "pretrain", "teacher_temperature", 50_000, 0.055),
    ("v3_7b", "pretrain", "teacher_temperature", 100_000, 0.07),
    ("v3_7b", "pretrain", "local_weight", 999_999, 1.0),
    ("v3_7b", "pretrain", "gram_weight", 999_999, 0.0),
    # 3e-5 x 4 sqrt(4096 / 1024)
    ("v3_7b", "gram", "lr", 0, 2.4e-4),
    ("v3_7b", "gram", "lr", 39_999, 2.4e-4),
    ("v3_7b", "gram", "last_layer_lr", 0, 2.4e-4),
    ("v3_7b", "gram", "weight_decay", 0, 0.04),
    ("v3_7b", "gram", "momentum", 0, 0.999),
    ("v3_7b", "gram", "teacher_temperature", 0, 0.07),
    ("v3_7b", "gram", "local_weight", 0, 1.0),
    ("v3_7b", "gram", "local_weight", 10_000, 0.5),
    ("v3_7b", "gram", "gram_weight", 0, 2.0),
    # 1.25e-5 x 4 sqrt(2048 / 1024), along half a cosine
    ("v3_7b", "high_resolution", "lr", 0, 0.0),
    ("v3_7b", "high_resolution", "lr", 9_999, 5e-5 * 2**0.5),
    ("v3_7b", "high_resolution", "lr", 29_999, 5e-5 * 2**0.5),
    ("v3_7b", "high_resolution", "momentum", 0, 0.999),
    ("v3_7b", "high_resolution", "local_weight", 0, 0.5),
    ("v3_7b", "high_resolution", "gram_weight", 0, 1.5),
    # 1e-3 x 4 sqrt(2048 / 1024), down to 1e-6, which is not scaled.
    ("v3_vitl16", "pretrain", "lr", 12_500, 4e-3 * 2**0.5),
    ("v3_vitl16", "pretrain", "lr", 124_999, 1e-6),
    ("v3_vitl16", "pretrain", "last_layer_lr", 1_249, 0.0),
    ("v3_vitl16", "pretrain", "weight_decay", 0, 0.04),
    ("v3_vitl16", "pretrain", "weight_decay", 124_999, 0.4),
    ("v3_vitl16", "pretrain", "momentum", 0, 0.992),
    ("v3_vitl16", "pretrain", "momentum", 124_999, 1.0),
    ("v3_vitl16", "pretrain", "teacher_temperature", 0, 0.04),
    ("v3_vitl16", "pretrain", "teacher_temperature", 37_500, 0.07),
    ("v3_vitl16", "gram", "gram_weight", 0, 2.0),
    ("v3_vitl16", "gram", "momentum", 0, 0.999),
    ("v3_vits16", "pretrain", "lr", 25_000, 1.4e-3 * 0.5**0.5),
    ("v3_vits16", "pretrain", "lr", 249_999, 1e-6),
    ("v3_vits16", "pretrain", "momentum", 0, 0.996),
    ("v3_vits16", "gram", "gram_weight", 0, 2.0),
    # 5e-4 x 512 / 256, down to 1e-6, which is not scaled.
    ("v1_vits16", "pretrain", "lr", 0, 0.0),
    ("v1_vits16", "pretrain", "lr", 25_020, 1e-3),
    ("v1_vits16", "pretrain", "lr", 250_199, 1e-6),
    ("v1_vits16", "pretrain", "last_layer_rests", 2_501, 1.0),
    ("v1_vits16", "pretrain", "last_layer_rests", 2_502, 0.0),
    ("v1_vits16", "pretrain", "weight_decay", 0, 0.04),
    ("v1_vits16", "pretrain", "weight_decay", 250_199, 0.4),
    ("v1_vits16", "pretrain", "momentum", 0, 0.996),
    ("v1_vits16", "pretrain", "momentum", 250_199, 1.0),
    ("v1_vits16", "pretrain", "teacher_temperature", 250_199, 0.04),
    ("v1_vitb8", "pretrain", "lr", 12_510, 2e-3),
    ("v1_vitb8", "pretrain", "lr", 300 * 1251 - 1, 2e-6),
    ("v1_vitb8", "pretrain", "teacher_temperature", 0, 0.03),
    ("v1_vitb8", "pretrain", "teacher_temperature", 50 * 1251, 0.07),
    ("v1_resnet50", "pretrain", "lr", 25_020, 0.06),
    ("v1_resnet50", "pretrain", "lr", 250_199, 1e-6),
    ("v1_resnet50", "pretrain", "weight_decay", 250_199, 1e-4),
    # 4e-3 sqrt(2048 / 1024)
    ("v2_vitl16_fast", "pretrain", "lr", 12_500, 4e-3 * 2**0.5),
    ("v2_vitl16_fast", "pretrain", "lr", 124_999, 1e-6),
    ("v2_vitl16_fast", "pretrain", "momentum", 0, 0.992),
    ("v2_vitl16_fast", "pretrain", "weight_decay", 124_999, 0.4),
    ("v2_vitl16_fast", "pretrain", "teacher_temperature", 37_500, 0.07),
    # 2e-4 sqrt(3072 / 1024)
    ("v2_vitg14", "pretrain", "lr", 100_000, 2e-4 * 3**0.5),
    ("v2_vitg14", "pretrain", "lr", 624_999, 1e-6),
    ("v2_vitg14", "pretrain", "weight_decay", 624_999, 0.2),
    ("v2_vitg14", "pretrain", "momentum", 0, 0.994),
    ("v2_vitg14", "high_resolution", "momentum", 9_999, 1.0),
    ("v2_vitl14", "high_resolution", "last_layer_lr", 0, 0.0),
    ("v2_vitl14", "high_resolution", "lr", 1_600, 2e-5 * 3**0.5),
    # The backbone rests while new heads learn.
    ("continue_from", "heads", "backbone_lr", 999, 0.0),
    ("continue_from", "heads", "lr", 100, 1e-3),
    ("continue_from", "everything", "backbone_lr", 1_000, 1e-4),
]


@pytest.mark.parametrize(("name", "phase", "schedule", "step", "value"), SCHEDULED)
def test_published_schedules(name, phase, schedule, step, value):
    schedules = build.phase_schedules(load(name).phases[phase])
    assert schedules[schedule](step) == pytest.approx(value, rel=1e-9, abs=1e-15)


def test_7b_refreshes_its_gram_teacher_three_times():
    gram = in_order(load("v3_7b"))[1]
    assert gram.first == 1_000_000
    refreshes, step = [], gram.first
    while (following := gram.next_refresh(step)) is not None:
        refreshes.append(following)
        step = following
    assert refreshes == [1_010_000, 1_020_000, 1_030_000]


def test_7b_sees_the_published_sizes():
    phase = in_order(load("v3_7b"))[2].options
    sizes = [(round(s, 9), p.crops.global_size, p.crops.local_size, p.gram.crop_size) for s, p in by_size(phase)]
    assert sizes == [
        (0.3, 512, 112, 768),
        (0.3, 768, 112, 1152),
        (0.3, 768, 160, 1152),
        (0.05, 768, 224, 1152),
        (0.05, 768, 336, 1152),
    ]


def test_an_early_gram_teacher_can_be_chosen_instead():
    changes = {f"phases.gram.gram.{key}": "0" for key in ("refresh_every", "max_refreshes")}
    validate(load("v3_7b", **changes, **{"phases.gram.gram.teacher": "gram_teacher/200000"}))


def test_no_phase_is_called_all():
    """On the command line that means every phase."""
    with pytest.raises(ValueError, match="a phase cannot be called 'all'"):
        config.set_phases(config.default(), all=config.phase(steps=1))
