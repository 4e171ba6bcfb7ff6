import json

import pytest

from dino_jax import bench, config
from dino_jax.benches import step, turns
from dino_jax.models.variants import VARIANTS


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    sizes = VARIANTS["dinov3_vits16"] | {"width": 32, "depth": 2, "heads": 2}
    monkeypatch.setitem(VARIANTS, "dinov3_vits16", sizes)
    monkeypatch.setattr(turns, "PAUSE", 0.0)
    monkeypatch.setattr(step, "MATMUL_SIDES", {"cpu": 64})
    default, phase = config.default, config.phase
    crops = {"global_size": 32, "local_size": 16}
    monkeypatch.setattr(config, "phase", lambda **options: phase(**options, crops=crops))

    def small():
        c = default()
        c.dino_head = c.ibot_head = config.head(prototypes=256, hidden=64, bottleneck=32)
        return c

    monkeypatch.setattr(config, "default", small)


def test_both_sides_and_their_ratio(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    measured, compiled_step = [], step.compiled_step

    def spy(networks, *rest):
        measured.append(networks)
        return compiled_step(networks, *rest)

    monkeypatch.setattr(step, "compiled_step", spy)
    arguments = ["step", "--drop-path", "0.3", "--batch", "2", "--steps", "2", "--torch"]
    assert bench.main([*arguments, "--json", str(tmp_path / "speed.json")]) == 0, capsys.readouterr().err
    numbers = json.loads((tmp_path / "speed.json").read_text())
    ours, torch, ratio = (
        numbers[f"step/{name}/drop_path_0.3"]
        for name in ("images_per_second", "torch_images_per_second", "ratio_to_torch")
    )
    assert min(ours, torch, numbers["step/gflops/drop_path_0.3"]) > 0
    assert ratio == pytest.approx(ours / torch)
    assert "PyTorch" in capsys.readouterr().out
    assert measured[0].ibot_head is not None  # as in the step of PyTorch


def test_bad_input(capsys):
    assert bench.main(["step", "--steps", "0"]) == 2
    assert "--batch must be at least 2, as KoLeo compares images, and --steps at least 1" in capsys.readouterr().err
    assert bench.main(["step", "--drop-path", "0", "1.5"]) == 2
    assert "--drop-path 0.0 1.5: rates must be 0 or more and below 1" in capsys.readouterr().err
    assert bench.main(["step", "--precision", "bfloat16", "--torch"]) == 2  # before anything is compiled
    assert "--torch" in capsys.readouterr().err
