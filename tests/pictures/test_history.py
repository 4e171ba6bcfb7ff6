import math

import numpy as np
import pytest
from PIL import Image

from dino_jax import pictures
from dino_jax.pictures.history import layout, running_mean


def records(steps=60, every=10):
    rng = np.random.default_rng(0)
    return [
        {
            "step": every * i,
            "loss/total": 10 / (i + 1) + 0.1 * rng.normal(),
            "loss/ibot": 5.0,
            "grad_norm/backbone": math.exp(rng.normal()),
            "schedule/lr": 1e-3 * i / steps,
            "train/skipped": 0.0,
        }
        | ({"health/rankme": 10.0 + i, "health/dino_used": 3.0, "knn/trained": 0.5} if i % 10 == 0 else {})
        for i in range(1, steps + 1)
    ]


def test_curves_are_drawn_with_phases(tmp_path):
    path = pictures.curves(records(), tmp_path / "curves.png", phases=[("pretrain", 0), ("gram", 400)])
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1500
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_has_just_begun_is_drawn(tmp_path, count):
    assert pictures.curves(records()[:count], tmp_path / "curves.png", phases=[("pretrain", 0)]).exists()


def test_non_finite_and_negative_values_are_drawn(tmp_path):
    broken = records()
    broken[5]["loss/total"] = math.nan
    broken[6]["grad_norm/backbone"] = math.inf
    broken[7]["grad_norm/backbone"] = 0.0
    only_nan = [{"step": 1, "loss/gram": math.nan}]
    assert pictures.curves(broken + only_nan, tmp_path / "curves.png").exists()


def test_every_schedule_and_health_number_has_a_place():
    names = ["schedule/lr", "schedule/gram_weight", "health/dino_used", "health/new", "train/skipped", "loss/total"]
    shown = [name for _, members in layout(names) for name in members]
    assert shown == ["loss/total", "schedule/lr", "schedule/gram_weight", "health/new"]


def test_running_mean_is_a_mean_that_keeps_gaps():
    values = np.arange(100.0)
    smooth = running_mean(values)
    np.testing.assert_allclose(smooth[5:-5], values[5:-5])
    values[50] = np.nan
    smooth = running_mean(values)
    assert np.isnan(smooth[50])
    assert np.isfinite(np.delete(smooth, 50)).all()
    assert running_mean(np.arange(20.0)) is None


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        pictures.curves([{"step": 1, "train/skipped": 0.0}], tmp_path / "curves.png")
