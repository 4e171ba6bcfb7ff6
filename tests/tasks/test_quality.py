import shutil

import pytest


def test_quality(evaluate, colors):
    result = evaluate("quality", "--data", colors, "--limit", 20, "--size", 32, "--batch-size", 8)
    numbers = result.numbers
    assert 1 <= numbers["quality/rankme_cls"] <= 16
    assert 0 <= numbers["quality/alignment"] < 2
    assert -4.1 < numbers["quality/uniformity"] <= 0
    expected = numbers["quality/neighbour_cosine"] - numbers["quality/patch_cosine"]
    assert numbers["quality/local_consistency"] == pytest.approx(expected)
    assert len(result.rows) == len(numbers) + 1


def test_masks_are_left_out(evaluate, colors, tmp_path):
    shutil.copytree(colors / "val", tmp_path / "data" / "images")
    alone = evaluate("quality", "--data", tmp_path / "data", "--size", 16).numbers
    shutil.copytree(colors / "val", tmp_path / "data" / "masks")
    assert evaluate("quality", "--data", tmp_path / "data", "--size", 16).numbers == alone


def test_quality_needs_two_images(evaluate, colors):
    with pytest.raises(ValueError, match="1 image is too few"):
        evaluate("quality", "--data", colors, "--limit", 1, "--size", 16)


def test_quality_needs_two_patches(evaluate, colors):
    with pytest.raises(ValueError, match="--size 8 does not hold two patches to compare: give 16 or more"):
        evaluate("quality", "--data", colors, "--size", 8)
