import json

import pytest

from dino_jax import bench
from dino_jax.benches import turns
from dino_jax.models import VIT_VARIANTS
from tests.torch_libraries import library


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    sizes = VIT_VARIANTS["dinov3_vits16"] | {"width": 32, "depth": 2, "heads": 2}
    monkeypatch.setitem(VIT_VARIANTS, "dinov3_vits16", sizes)
    monkeypatch.setattr(turns, "PAUSE", 0.0)


def run(*options):
    return bench.main(["features", "--variants", "dinov3_vits16", "--size", "32", "--batch", "2", *options])


def test_table_and_numbers(tmp_path, capsys):
    assert run("--repeats", "2", "--no-torch", "--json", str(tmp_path / "speed.json")) == 0
    assert "dinov3_vits16" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "speed.json").read_text())
    assert numbers["features/ours/dinov3_vits16"] > 0


def test_both_sides_and_their_ratio(tmp_path):
    library("transformers")
    assert run("--repeats", "2", "--json", str(tmp_path / "speed.json")) == 0
    numbers = json.loads((tmp_path / "speed.json").read_text())
    ours, torch, ratio = (numbers[f"features/{name}/dinov3_vits16"] for name in ("ours", "torch", "ratio"))
    assert ratio == pytest.approx(ours / torch)


def test_bad_input(capsys):
    assert run("--repeats", "0", "--no-torch") == 2
    assert capsys.readouterr().err == "error: --batch and --repeats must be at least 1\n"
