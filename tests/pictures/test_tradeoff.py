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


def test_each_quality_has_steps_of_its_own(tmp_path):
    mixed = [{"step": 70 * i, "knn/teacher": 0.1 * i} for i in range(1, 6)] + records(3)[1:]
    mixed[-2:] = [{"step": record["step"], "dense/miou": record["dense/miou"]} for record in mixed[-2:]]
    assert pictures.global_against_dense(mixed, tmp_path / "mixed.png").exists()
    apart = [record for record in mixed if "dense/miou" in record or record["step"] < 200]
    assert not pictures.can_be_drawn(apart)


@pytest.mark.parametrize("count", [0, 1])
def test_one_record_is_too_few(tmp_path, count):
    with pytest.raises(ValueError, match="knn/teacher and dense/miou need two records each"):
        pictures.global_against_dense(records(count), tmp_path / "both.png")
    assert not list(tmp_path.iterdir())
