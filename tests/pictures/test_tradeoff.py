import pytest
from PIL import Image

from dino_jax import pictures


def records(count):
    return [
        {"step": 100 * i, "loss/total": 1.0} | ({"knn/teacher": 0.1 * i, "dense/miou": 0.3 - 0.05 * abs(i - 2)})
        for i in range(1, count + 1)
    ]


def test_it_is_drawn(tmp_path):
    path = pictures.global_against_dense(records(6), tmp_path / "both.png", phases=[("pretrain", 0), ("gram", 400)])
    with Image.open(path) as picture:
        assert picture.width > 1200


def test_one_record_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="1 records hold knn/teacher and dense/miou"):
        pictures.global_against_dense(records(1), tmp_path / "both.png")
    assert not list(tmp_path.iterdir())
