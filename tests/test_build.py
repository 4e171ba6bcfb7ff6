import pytest

from dino_jax import build
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


def config_of(tmp_path, test_classes):
    c = get_config()
    c.data.path = str(write(tmp_path / "train", ["a", "b", "c"]))
    c.data.test_path = str(write(tmp_path / "test", test_classes))
    return c


def test_held_out_labels_count_the_training_classes(tmp_path):
    source, held_out = build.sources(config_of(tmp_path, ["b", "c"]))
    assert held_out.class_names == source.class_names == ("a", "b", "c")
    assert [held_out[index]["label"] for index in range(6)] == [1, 1, 1, 2, 2, 2]


def test_a_class_that_is_not_trained_on_is_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"test holds class d, which .*train does not: give the class folders the same names"
    ):
        build.sources(config_of(tmp_path, ["b", "d"]))
