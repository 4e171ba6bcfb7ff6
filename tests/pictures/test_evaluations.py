"""Charts of the evaluation tasks: each is a PNG of a sensible size, for the odd cases too."""

import numpy as np
from PIL import Image

from dino_jax.pictures.charts import over_setting, spread
from dino_jax.pictures.confusion import MOST, confusion, worst_classes


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).reshape(-1, 3)


def color(name):
    return [int(name[i : i + 2], 16) for i in (1, 3, 5)]


def has(path, name):
    return (pixels(path) == color(name)).all(axis=1).any()


def test_confusion_leaves_out_absent_classes_and_shows_the_worst(tmp_path):
    counts = np.diag(np.arange(30))  # class 0 has no image
    counts[29, 3] = 40
    counts[7, 8] = 100
    assert worst_classes(counts).tolist() == [7, 29, *(n for n in range(1, MOST) if n != 7)]
    names = [f"class number {index}, of a long name" for index in range(30)]
    worst, as_many = confusion(counts, names, tmp_path / "worst.png", title="worst"), np.diag([0, *[1] * MOST])
    few = confusion(as_many[:9, :9], names[:9], tmp_path / "few.png", title="few")
    most = confusion(as_many, names[: MOST + 1], tmp_path / "most.png", title="most")
    assert len(pixels(few)) < len(pixels(most)) == len(pixels(worst))


def test_lines_over_a_setting(tmp_path):
    lines = {"a": np.array([0.1, 0.9]), "b": np.array([0.2, 0.2])}
    path = over_setting([1e-3, 1.0], lines, tmp_path / "rates.png", title="t", setting="rate", chosen=("a", 1))
    assert has(path, "#0072B2")
    assert has(path, "#000000")


def test_spread_of_collapsed_features(tmp_path):
    collapsed = {"CLS": np.array([1.0, 0.0])}
    assert has(spread(collapsed, {"pairs": np.ones(5)}, tmp_path / "spread.png", title="t"), "#0072B2")
