"""Crop geometry against torchvision's numbers and by its statistics."""

import numpy as np
import pytest
from PIL import Image

from dino_jax.data.crops import multi_crop, random_window, resized_crop
from dino_jax.data.fit import centre_crop, fit
from tests.data.images import photograph

OPTIONS = {
    "global_size": 32,
    "global_scale": (0.32, 1.0),
    "local_size": 16,
    "local_scale": (0.05, 0.32),
    "local_number": 3,
    "horizontal_flips": True,
}


@pytest.mark.golden
def test_resized_crop_equals_pillow_through_torchvision(golden):
    file = golden("tv_ops.npz")
    compared = 0
    for path in [key for key in file if key.endswith("top_left_height_width_size")]:
        image = Image.fromarray(file[f"{path.split('/')[0]}/in/image_uint8"])
        *window, size = file[path].tolist()
        expected = file[path.replace("top_left_height_width_size", "pil")]
        np.testing.assert_array_equal(resized_crop(image, tuple(window), size=size), expected)
        compared += 1
    assert compared


def test_windows_have_the_asked_areas_and_aspects():
    rng = np.random.default_rng(0)
    windows = np.array([random_window(rng, 300, 400, scale=(0.05, 0.32)) for _ in range(4000)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 300).all() and (left + width <= 400).all()
    share = height * width / (300 * 400)
    assert share.min() > 0.045 and share.max() < 0.33
    assert abs(share.mean() - 0.185) < 4 * 0.27 / np.sqrt(12 * 4000)  # uniform, 4 standard errors
    logarithm = np.log(width / height)
    assert np.abs(logarithm).max() < np.log(4 / 3) + 0.05
    assert abs(logarithm.mean()) < 4 * 2 * np.log(4 / 3) / np.sqrt(12 * 4000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 1000), (0, 433, 100, 133)), ((1000, 100), (433, 0, 133, 100)), ((60, 70), (0, 0, 60, 70))],
)
def test_without_a_fitting_window_the_centre_is_taken(size, expected):
    assert random_window(np.random.default_rng(0), *size, scale=(4.0, 5.0)) == expected


def test_other_bits_and_channels_are_cropped_alike():
    image = photograph(60, 80)
    crops = multi_crop(image, np.random.default_rng(3), gram_size=64, **OPTIONS)
    bands = np.concatenate([image[..., ::-1], image], axis=2).astype(np.uint16) * 257
    deep = multi_crop(bands, np.random.default_rng(3), gram_size=64, **OPTIONS)
    for name, crop in crops.items():
        assert deep[name].dtype == np.uint16
        # Pillow resizes 8 bits in fixed point and rounds between its two passes: at most 1.1 of 255 apart.
        np.testing.assert_allclose(deep[name][..., 3:] / 257, crop, atol=1.25)
        np.testing.assert_array_equal(deep[name][..., 2::-1], deep[name][..., 3:])


def test_shapes_and_determinism():
    image = photograph(60, 80)
    crops = multi_crop(image, np.random.default_rng(3), gram_size=64, **OPTIONS)
    assert {name: crop.shape for name, crop in crops.items()} == {
        "global_crops": (2, 32, 32, 3),
        "local_crops": (3, 16, 16, 3),
        "gram_crops": (2, 64, 64, 3),
    }
    again = multi_crop(image, np.random.default_rng(3), gram_size=64, **OPTIONS)
    for name, crop in crops.items():
        assert crop.dtype == np.uint8
        np.testing.assert_array_equal(crop, again[name])


def test_gram_crops_show_the_same_windows_and_change_nothing_else():
    image = photograph(60, 80)
    for seed in range(8):
        crops = multi_crop(image, np.random.default_rng(seed), gram_size=64, **OPTIONS)
        without = multi_crop(image, np.random.default_rng(seed), **OPTIONS)
        np.testing.assert_array_equal(crops["local_crops"], without["local_crops"])
        np.testing.assert_array_equal(crops["global_crops"], without["global_crops"])
        halved = crops["gram_crops"].reshape(2, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.abs(halved - crops["global_crops"]).mean() < 3


def test_half_of_the_crops_are_mirrored_and_none_without_flips():
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 60, axis=0).repeat(3, axis=2)

    def mirrored(flips):
        options = OPTIONS | {"horizontal_flips": flips, "local_number": 200}
        crops = multi_crop(ramp, np.random.default_rng(0), **options)["local_crops"].astype(int)
        return (crops[:, 8, 0, 0] > crops[:, 8, -1, 0]).mean()

    assert mirrored(False) == 0
    assert abs(mirrored(True) - 0.5) < 4 * 0.5 / np.sqrt(200)


def test_global_and_local_crops_show_their_own_shares_of_the_image():
    ramps = np.stack(np.meshgrid(np.arange(300), np.arange(400), indexing="ij"), axis=-1).astype(np.uint16) * 160
    options = OPTIONS | {"global_scale": (0.5, 0.7), "local_scale": (0.1, 0.3), "local_number": 20}
    pairs = [multi_crop(ramps, np.random.default_rng(seed), **options) for seed in range(10)]
    for name, low, high in (("global_crops", 0.5, 0.7), ("local_crops", 0.1, 0.3)):
        crops = np.concatenate([pair[name] for pair in pairs]) / 160
        # Half of the crop: the filter is cut off at its borders.
        near, far = crops.shape[1] // 4, 3 * crops.shape[1] // 4
        height = 2 * np.abs(crops[:, far, near, 0] - crops[:, near, near, 0])
        width = 2 * np.abs(crops[:, near, far, 1] - crops[:, near, near, 1])
        share = height * width / (300 * 400)
        assert share.min() > 0.97 * low and share.max() < 1.03 * high
        assert share.max() - share.min() > 0.7 * (high - low)


def test_there_may_be_no_local_crops():
    crops = multi_crop(photograph(), np.random.default_rng(0), **OPTIONS | {"local_number": 0})
    assert crops["local_crops"].shape == (0, 16, 16, 3)


@pytest.mark.parametrize("shape", [(16, 16), (20, 40), (41, 19), (8, 100)])
def test_centre_crop(shape):
    image = photograph(*shape)
    result = centre_crop(image, size=16)
    assert result.shape == (16, 16, 3)
    if shape == (16, 16):
        np.testing.assert_array_equal(result, image)


def test_centre_is_the_published_cut():
    """The shorter side of 256 is kept, and 224 of it remain: Resize(256), CenterCrop(224)."""
    image = photograph(256, 300)
    np.testing.assert_array_equal(fit(image, size=224, how="centre"), image[16:240, 38:262])
    assert fit(photograph(100, 50), size=96, how="centre").shape == (96, 96, 3)
