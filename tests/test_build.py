import re
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
