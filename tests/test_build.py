from types import SimpleNamespace

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


H100 = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H100")
OTHERS = [
    None,
    SimpleNamespace(device_kind="cpu"),
    SimpleNamespace(compute_capability="7.5", device_kind="Tesla T4"),
    SimpleNamespace(compute_capability="gfx942", device_kind="MI300X"),
]


def of_heads(width, precision="bfloat16", attention="auto"):
    c = get_config()
    c.precision, c.model.attention = precision, attention
    c.model.width, c.model.heads = 2 * width, 2
    return c


def test_attention_is_fused_where_there_is_a_kernel(monkeypatch, capsys):
    checked = []
    monkeypatch.setattr(build, "disagreement", lambda **options: checked.append(options) or "")
    assert build.networks(of_heads(64), shards=1, device=H100).backbone.attention == "cudnn"
    assert build.networks(of_heads(64, attention="xla"), shards=1, device=H100).backbone.attention == "xla"
    for width, precision in ((64, "float32"), (12, "bfloat16"), (136, "bfloat16")):
        assert build.attention_of(of_heads(width, precision), H100) == "xla"
    assert [build.attention_of(of_heads(64), device) for device in OTHERS] == ["xla"] * 4
    counts = build.token_counts(get_config())  # of local and global crops
    assert checked == [{"tokens": tokens, "head_dim": 64, "device": H100} for tokens in counts] and len(counts) == 2
    monkeypatch.setattr(build, "disagreement", lambda **_: "7 tokens: off by nan of the largest entry")
    assert build.attention_of(of_heads(64), H100) == "xla"
    assert "kernel fails its check here (7 tokens: off by nan of the largest entry)" in capsys.readouterr().err


def test_fused_attention_that_is_not_there_is_one_line():
    words = "here they are NVIDIA H100, float32 and 64: use 'auto'"
    with pytest.raises(ValueError, match=words):
        build.networks(of_heads(64, "float32", "cudnn"), shards=1, device=H100)
    for device in OTHERS[1:]:
        with pytest.raises(ValueError, match=f"model.attention = 'cudnn' needs NVIDIA .* are {device.device_kind}, "):
            build.attention_of(of_heads(64, attention="cudnn"), device)


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
