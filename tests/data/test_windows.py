import numpy as np
import pytest

from dino_jax.data import windows


@pytest.mark.parametrize(
    "length, window, stride, expected",
    [
        (512, 512, 341, [0]),
        (300, 512, 341, [0]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),
        (900, 512, 341, [0, 341, 388]),
    ],
)
def test_windows_cover_an_axis(length, window, stride, expected):
    assert windows.window_starts(length, window, stride) == expected


def test_merging_undoes_cutting():
    image = np.random.default_rng(0).random((37, 50, 3)).astype(np.float32)
    for window, stride in (((16, 16), (10, 10)), ((48, 64), (32, 32)), ((37, 20), (37, 20))):
        parts, places = windows.cut_windows(image, window, stride)
        assert parts.shape == (len(places), *window, 3)
        np.testing.assert_allclose(windows.merge(parts, places, image.shape[:2]), image, rtol=1e-6)


def test_overlaps_are_averaged():
    parts = np.stack([np.zeros((2, 2, 1)), np.ones((2, 2, 1))])
    np.testing.assert_allclose(windows.merge(parts, [(0, 0), (0, 1)], (2, 3))[..., 0], [[0, 0.5, 1]] * 2)


def test_crops_keep_image_and_labels_together():
    labels = np.random.default_rng(0).integers(0, 200, (6, 8)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
    image = labels[..., None].repeat(3, -1)
    random = np.random.default_rng(1)
    for _ in range(8):
        crop, target = windows.random_crop(image, labels, (32, 32), side=0, scale=(0.4, 2.0), fill=255, random=random)
        assert crop.shape == (32, 32, 3) and target.shape == (32, 32) and target.dtype == np.uint8
        inside = target != 255
        # Interpolation changes the image near borders of cells only.
        assert np.median(abs(crop[..., 0].astype(int) - target)[inside]) <= 5
        assert (crop[~inside] == 0).all()


def test_sizes():
    assert windows.multiple(512, 14) == 518 and windows.multiple(512, 16) == 512 and windows.multiple(3, 16) == 16
    assert windows.shorter_side((480, 854), 240) == (240, 427) and windows.shorter_side((3, 5), 0) == (3, 5)
