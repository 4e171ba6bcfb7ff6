import dataclasses
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax import build, phases
from dino_jax import config as config_lib
from tests.data.test_labelled import write
from tests.tiny_recipe import get_config


def test_a_phase_may_recompute_more_than_the_run(monkeypatch):
    monkeypatch.setattr(build, "make_train_step", lambda networks, *_, **__: networks.backbone)
    config = get_config()
    config.remat = "matmuls"
    config.phases["gram"].remat = "full"
    networks = build.networks(config, shards=1)
    backbones = {name: build.train_step(networks, config.phases[name], seed=0) for name in config.phase_order}
    assert {name: backbone.remat for name, backbone in backbones.items()} == {"pretrain": "matmuls", "gram": "full"}
    assert backbones["gram"].clone(remat="matmuls") == networks.backbone


def unusual():
    """Returns the tiny recipe's phases with values that no default has."""
    c = get_config()
    c.seed, c.data.workers, c.data.homogeneous_share = 3, 5, 0.25
    p = c.phases.gram
    p.update({"student_temperature": 0.11, "sinkhorn_iterations": 5, "center_momentum": 0.8, "targets": "centering"})
    p.loss.update({"dino": 1.5, "ibot": 0.5, "koleo": 0.2, "koleo_topk": 2, "koleo_group_size": 4})
    p.gram.update(
        {"antialias": True, "image_level": False, "remove_negatives": "both", "tokens": "masked", "stats": True}
    )
    p.gram.crop_size = 48
    p.optim.update({"b1": 0.8, "b2": 0.95, "clip": "tensor", "clip_norm": 2.5, "layer_decay": 0.7})
    p.optim.patch_embed_multiplier = 0.3
    p.crops.update(
        {"global_scale": (0.3, 0.9), "local_scale": (0.1, 0.2), "local_number": 3, "horizontal_flips": False}
    )
    p.crops.mixture = ((0.5, 48, 24, 40),)
    p.masks.update({"ratio": (0.2, 0.4), "probability": 0.75, "drawn_sizes": True, "circular_shift": True})
    return c


def test_every_option_of_a_phase_reaches_its_step(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        build, "make_train_step", lambda networks, optimizer, objective, **o: seen.update(o, of=objective)
    )
    monkeypatch.setattr(build.optim, "adamw", lambda *decays: decays)
    c = unusual()
    phase = c.phases.gram
    assert build.optimizer(phase) == (0.8, 0.95)
    build.train_step(build.networks(c, shards=1), phase, seed=7)
    expected = {name: phase[name] for name in ("student_temperature", "targets", "sinkhorn_iterations")}
    expected |= {"center_momentum": 0.8} | phase.loss.to_dict()
    options = ("antialias", "image_level", "remove_negatives", "tokens", "stats")
    expected |= {f"gram_{name}": phase.gram[name] for name in options} | {"gram": True}
    assert dataclasses.asdict(seen.pop("of")) == expected
    rest = {"clip_norm": 2.5, "layer_decay": 0.7, "patch_embed_multiplier": 0.3, "seed": 7}
    assert seen == rest | {"clip": build.optim.clip_by_tensor}


def test_every_option_of_a_phase_reaches_its_batches(monkeypatch):
    monkeypatch.setattr(build, "train_batches", lambda source, **options: options)
    c = unusual()
    expected = {
        name: c.phases.gram.crops[name] for name in ("global_size", "global_scale", "local_size", "local_scale")
    }
    expected |= {"local_number": 3, "horizontal_flips": False, "mixture": [(0.5, 48, 24, 40)], "gram_size": 48}
    expected |= {f"mask_{name}": value for name, value in c.phases.gram.masks.to_dict().items()}
    expected |= {"batch_size": 8, "seed": 3001, "homogeneous": 0, "homogeneous_share": 0.25, "patch_size": 8}
    expected |= {"channels": 3, "dtype": np.uint8, "workers": 5, "process_index": 0, "process_count": 1}
    assert build.batches(c, phases.in_order(c)[1], source=()) == expected
    first = build.batches(c, phases.in_order(c)[0], source=())
    assert (first["seed"], first["gram_size"]) == (3000, 0)
    c.phases.gram.loss.ibot = 0.0
    assert build.batches(c, phases.in_order(c)[1], source=())["mask_probability"] == 0


def test_networks_compute_in_the_recipe_s_precision():
    c = get_config()
    c.precision = "bfloat16"
    networks = build.networks(c, shards=1)
    assert networks.backbone.dtype == networks.dino_head.dtype == networks.ibot_head.dtype == jnp.bfloat16


def test_centers_are_kept_if_any_phase_needs_them():
    c = get_config()
    assert build.centered(c) == ()
    c.phases.gram.targets = "centering"
    assert build.centered(c) == ("dino", "ibot")
    c.phases.gram.loss.ibot = 0.0
    assert build.centered(c) == ("dino",)


H100 = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H100")
OTHERS = [
    SimpleNamespace(device_kind="cpu"),
    SimpleNamespace(compute_capability="7.5", device_kind="Tesla T4"),
    SimpleNamespace(compute_capability="gfx942", device_kind="MI300X"),
]


def kernel(device, attention="auto", precision="bfloat16"):
    """Returns the attention of a network on a device."""
    c = get_config()
    c.precision, c.model.attention = precision, attention
    return build.with_attention(build.networks(c, shards=1), c, device).backbone.attention


def test_attention_is_fused_where_its_kernel_passes_the_check(monkeypatch, capsys):
    checked = []
    monkeypatch.setattr(build, "disagreement", lambda **options: checked.append(options) or "")
    assert kernel(H100) == kernel(H100, "cudnn") == "cudnn"
    assert capsys.readouterr().err == "attention: the kernel of cuDNN\n"
    assert kernel(H100, "xla") == "xla"
    counts = [1 + 4 + side**2 for side in (2, 4, 8)]  # local; global, evaluated; Gram
    assert checked == 2 * [{"tokens": tokens, "head_dim": 16, "device": H100} for tokens in counts]
    monkeypatch.setattr(build, "disagreement", lambda **_: "7 tokens: off by nan of the largest entry")
    assert kernel(H100) == "xla"
    words = "cuDNN's kernel fails its check (7 tokens: off by nan of the largest entry)"
    assert capsys.readouterr().err == f"attention: plain, as {words}\n"
    with pytest.raises(ValueError, match=re.escape(f"model.attention = 'cudnn': {words}: use 'xla'")):
        kernel(H100, "cudnn")


def test_attention_is_plain_where_there_is_no_kernel(capsys):
    for device, precision in ((H100, "float32"), *((device, "bfloat16") for device in OTHERS)):
        assert kernel(device, "auto", precision) == kernel(device, "xla", precision) == "xla"
        words = f"needs an NVIDIA GPU .* and precision = 'bfloat16', not {device.device_kind} and '{precision}'"
        assert re.search(words, capsys.readouterr().err)
        with pytest.raises(ValueError, match=words):
            kernel(device, "cudnn", precision)


def test_a_convolutional_network_attends_nowhere():
    c = get_config()
    c.model = config_lib.model("dino_resnet50")
    networks = build.networks(c, shards=1)
    assert build.with_attention(networks, c, H100) is networks


def test_a_convolutional_network_recomputes_nothing():
    config = get_config()
    config.model = config_lib.model("dino_resnet50")
    config.phases["pretrain"].remat = "none"
    networks = build.networks(config, shards=1)
    build.train_step(networks, config.phases["pretrain"], seed=0)


def config_of(tmp_path, test_classes):
    c = get_config()
    c.data.path = str(write(tmp_path / "train", ["a", "b", "c"]))
    c.data.test_path = str(write(tmp_path / "test", test_classes))
    return c


def test_another_set_may_vote_and_be_classified(tmp_path):
    c = config_of(tmp_path, [])
    c.data.test_path = ""
    source, held_out = build.sources(c)
    assert build.evaluated(c, source, held_out) == (source, None)
    for split, count in (("train", 2), ("val", 1)):
        write(tmp_path / "judged" / split, ["x", "y"], count)
    c.eval.knn.path = str(tmp_path / "judged")
    voters, tested = build.evaluated(c, source, held_out)
    assert (len(voters), len(tested), tested.class_names) == (4, 2, ("x", "y"))
    c.eval.knn.path = str(tmp_path / "judged" / "val")
    with pytest.raises(ValueError, match=r"^eval\.knn\.path: .* holds no folders train and val"):
        build.evaluated(c, source, held_out)


def test_held_out_labels_count_the_training_classes(tmp_path):
    source, held_out = build.sources(config_of(tmp_path, ["b", "c"]))
    assert held_out.class_names == source.class_names == ("a", "b", "c")
    assert [held_out[index]["label"] for index in range(6)] == [1, 1, 1, 2, 2, 2]


def test_the_classes_of_images_that_stay_among_themselves_count(tmp_path):
    c = config_of(tmp_path, ["e"])
    c.data.homogeneous_path = str(write(tmp_path / "further", ["d", "e"]))
    c.data.homogeneous_share = 0.25
    source, held_out = build.sources(c)
    assert len(source) == 9 + 6 and source.class_names == held_out.class_names == ("d", "e")
    assert [source[index]["label"] for index in range(15)] == [-1] * 9 + [0] * 3 + [1] * 3
    assert (source.name(8), source.name(9)) == ("c/2.png", "d/0.png")
    assert held_out[0]["label"] == 1
    c.data.homogeneous_path = str(tmp_path / "further" / "d")  # without classes
    c.data.test_path = str(write(tmp_path / "other", ["b"]))
    unnamed, held_out = build.sources(c)
    assert unnamed.class_names == held_out.class_names == ("a", "b", "c") and held_out[0]["label"] == 1
    assert [unnamed[index]["label"] for index in (0, 8, 9, 11)] == [0, 2, -1, -1]
    batches = build.batches(c, phases.in_order(c)[0], source)
    alone = [set(next(batches)["ids"] >= 9) for _ in range(12)]
    assert alone == [{number % 4 == 3} for number in range(12)]


def test_a_class_that_is_not_trained_on_is_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"test holds class d, which .*train does not: give the classes the same names"
    ):
        build.sources(config_of(tmp_path, ["b", "d"]))
