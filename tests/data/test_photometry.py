"""Colour distortion against torchvision's numbers, a NumPy re-derivation and hand-computed cases."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.data import photometry

FACTORS = ("brightness", "contrast", "saturation", "hue")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NOTHING = {
    "blur": (0.0, 0.0),
    "solarize": (0.0, 0.0),
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "mean": MEAN,
    "std": STD,
}


def planar(image):
    """(height, width, 3) uint8 -> (3, batch of one, height, width) float in [0, 1]."""
    return jnp.moveaxis(jnp.asarray(image, jnp.float32) / 255, -1, 0)[:, None]


def apply(operation, image, *arguments):
    """Runs an operation under jit on one image (height, width, 3) with scalar arguments."""
    values = [jnp.full((1,), value, jnp.float32) for value in arguments]
    return np.moveaxis(np.asarray(jax.jit(operation)(planar(image), *values))[:, 0], 0, -1)


@pytest.mark.golden
@pytest.mark.parametrize("name", [*FACTORS, "gaussian_blur_kernel9", "grayscale", "solarize_128"])
def test_operations_match_torchvision(golden, name):
    file = golden("tv_ops.npz")
    operation = {"gaussian_blur_kernel9": "gaussian_blur", "solarize_128": "solarize"}.get(name, name)
    compared = 0
    for number in range(len(file.config["images"])):
        image = file[f"{number}/in/crop_uint8"]
        for path in [key for key in file if key.startswith(f"{number}/{name}/") and key.endswith("/float")]:
            argument = "sigma" if operation == "gaussian_blur" else "factor"
            arguments = [file[path.replace("float", argument)]] if path.count("/") == 3 else []
            result = apply(getattr(photometry, operation), image, *arguments)
            np.testing.assert_allclose(result, file[path], atol=2e-6)
            compared += 1
    assert compared


@pytest.mark.golden
def test_normalize_matches_torchvision(golden):
    file = golden("tv_ops.npz")
    for number in range(len(file.config["images"])):
        result = photometry.normalize(file[f"{number}/in/crop_uint8"], MEAN, STD)
        np.testing.assert_allclose(result, file[f"{number}/normalize_imagenet/float"], atol=2e-6)


def test_one_pixel_by_hand():
    pixel = np.array([[[51, 102, 204]]], np.uint8)  # 0.2, 0.4, 0.8
    grey = 0.2989 * 0.2 + 0.587 * 0.4 + 0.114 * 0.8
    np.testing.assert_allclose(apply(photometry.brightness, pixel, 1.5), [[[0.3, 0.6, 1.0]]], rtol=1e-6)
    np.testing.assert_allclose(apply(photometry.grayscale, pixel), np.full((1, 1, 3), grey), rtol=1e-6)
    expected = [[[0.5 * value + 0.5 * grey for value in (0.2, 0.4, 0.8)]]]
    np.testing.assert_allclose(apply(photometry.saturation, pixel, 0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(apply(photometry.contrast, pixel, 0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(apply(photometry.solarize, pixel), [[[0.2, 0.4, 0.2]]], rtol=1e-6)


def test_the_grey_of_other_channels_is_their_mean():
    bands = np.array([[[51, 102, 204, 255, 0]]], np.uint8)
    unit, grey = bands / 255, (51 + 102 + 204 + 255) / 5 / 255
    np.testing.assert_allclose(apply(photometry.grayscale, bands), np.full((1, 1, 5), grey), rtol=1e-6)
    np.testing.assert_allclose(apply(photometry.saturation, bands, 0.5), 0.5 * unit + 0.5 * grey, rtol=1e-6)
    np.testing.assert_allclose(apply(photometry.contrast, bands, 0.5), 0.5 * unit + 0.5 * grey, rtol=1e-6)
    np.testing.assert_allclose(apply(photometry.hue, bands, 0.3), unit, rtol=1e-6)


def test_sixteen_bits_are_scaled_to_one():
    deep = np.array([[[[[0, 65535, 32768]]]]], np.uint16)
    plain = {"blur": (0.0,), "solarize": (0.0,), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    expected = (deep / 65535 - 0.5) / 0.25
    np.testing.assert_allclose(photometry.normalize(deep, (0.5,) * 3, (0.25,) * 3), expected, atol=5e-7)
    np.testing.assert_allclose(distort(deep, **plain), expected, atol=5e-7)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_matches_the_standard_library(shift):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    pixels[0], pixels[1, :, 0] = 7, pixels[1, :, 1]  # grey ones and ties
    expected = np.empty(pixels.shape)
    for place in np.ndindex(6, 6):
        turn, saturation, value = colorsys.rgb_to_hsv(*pixels[place] / 255)
        expected[place] = colorsys.hsv_to_rgb((turn + shift) % 1, saturation, value)
    np.testing.assert_allclose(apply(photometry.hue, pixels, shift), expected, atol=2e-6)


def test_blur_matches_a_direct_sum():
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    sigma = 1.3
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(image / 255, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    expected = sum(kernel[i] * kernel[j] * padded[i : i + 12, j : j + 10] for i in range(9) for j in range(9))
    np.testing.assert_allclose(apply(photometry.gaussian_blur, image, sigma), expected, atol=1e-6)


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(1).integers(0, 256, (64, 2, 8, 8, 3), np.uint8)


@functools.cache
def compiled(options):
    return jax.jit(functools.partial(photometry.distort, **NOTHING | dict(options)))


def distort(crops, key=0, **options):
    return np.asarray(compiled(tuple(options.items()))(jax.random.key(key), crops))


def test_distort_without_any_probability_is_normalize(crops):
    np.testing.assert_allclose(distort(crops), photometry.normalize(crops, MEAN, STD), atol=1e-6)


def test_distort_is_a_function_of_its_key(crops):
    options = {"jitter_probability": 0.8, "gray_probability": 0.2, "blur": (1.0, 0.1), "solarize": (0.0, 0.2)}
    first = distort(crops, **options)
    np.testing.assert_array_equal(first, distort(crops, **options))
    assert np.abs(first - distort(crops, key=1, **options)).max() > 0.1


@pytest.mark.parametrize("name", ["blur", "solarize"])
def test_probabilities_hold_for_each_view(crops, name):
    changed = np.abs(distort(crops, **{name: (0.25, 1.0)}) - distort(crops)).max((2, 3, 4)) > 1e-4
    assert changed[:, 1].mean() > 0.8  # a blur of sigma below 0.2 pixels changes nothing
    assert 4 <= changed[:, 0].sum() <= 28  # 64 draws of 1/4: 16 and 3.5 standard deviations


@pytest.mark.parametrize("name", ["jitter_probability", "gray_probability"])
def test_probabilities_hold_for_each_image(crops, name):
    changed = np.abs(distort(crops, **{name: 0.25}) - distort(crops)).max((2, 3, 4)) > 1e-4
    assert 15 <= changed.sum() <= 49  # 128 draws of 1/4: 32 and 3.5 standard deviations


def test_jitter_factors_stay_in_their_ranges(crops):
    grey = np.full_like(crops, 50)
    grey[:, 1] = 150  # a view that shows another's pixels is out of range
    limits = {"mean": (0, 0, 0), "std": (1, 1, 1), "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    factor = distort(grey, jitter_probability=1.0, **limits)[:, :, 0, 0, 0] / (grey[:, :, 0, 0, 0] / 255)
    assert factor.min() >= 0.6 - 1e-5 and factor.max() <= 1.4 + 1e-5
    assert len(np.unique(factor)) == factor.size
    assert factor.max() - factor.min() > 0.7


ROWS = np.array([[80] * 3, [160] * 3, [160, 110, 100]])


@pytest.fixture(scope="module")
def jittered(crops):
    """Colours of images of a dark, a bright and a red row, jittered with four keys: (keys, batch, views, rows, 3).

    Brightness stays, so that the differences of the colours show the other factors.
    """
    image = np.empty_like(crops)
    image[:, :, 0], image[:, :, 1], image[:, :, 2:] = ROWS
    options = {"mean": (0, 0, 0), "std": (1, 1, 1), "jitter_probability": 1.0, "brightness": 0.0}
    return np.stack([distort(image, key, **options)[:, :, :3, 0] for key in range(4)])


def contrasts(jittered):
    return (jittered[..., 1, 0] - jittered[..., 0, 0]) / (80 / 255)  # saturation and hue leave greys alone


def assert_uniform(values, low, high):
    """Of 512 draws."""
    assert values.min() >= low - 1e-4 and values.max() <= high + 1e-4
    assert values.max() - values.min() > 0.9 * (high - low)


def test_contrast_saturation_and_hue_have_their_own_limits(jittered):
    red = jittered[..., 2, :]
    saturation = (red.max(-1) - red.min(-1)) / (60 / 255) / contrasts(jittered)
    turns = np.array([colorsys.rgb_to_hsv(*color)[0] for color in red.reshape(-1, 3)])
    assert_uniform(contrasts(jittered), 0.6, 1.4)
    assert_uniform(saturation, 0.8, 1.2)
    assert_uniform((turns - colorsys.rgb_to_hsv(*ROWS[2])[0] + 0.5) % 1 - 0.5, -0.1, 0.1)


def test_the_order_of_jitter_is_drawn_for_each_view(jittered):
    """Contrast moves colours away from the mean grey, which hue changes if it comes first."""
    factor = contrasts(jittered)
    mean = (ROWS / 255 @ photometry.GREY) @ (1 / 8, 1 / 8, 6 / 8)
    away = jittered[..., 0, 0] - (factor * 80 / 255 + (1 - factor) * mean)
    hue_first = np.abs(away).max(1) > 1e-3  # (keys, views)
    assert (hue_first[:, 0] != hue_first[:, 1]).any()


def test_blurs_are_of_a_tenth_to_two_pixels(crops):
    spot = np.zeros_like(crops)
    spot[:, :, 4, 4] = 255
    centre = (distort(spot, blur=(0.25, 1.0)) * STD + MEAN)[:, 1, 4, 4, 0]
    sigmas = np.linspace(0.1, 3, 300)
    bells = np.exp(-0.5 * (np.arange(-4, 5) / sigmas[:, None]) ** 2)
    sigma = np.interp(-centre, -1 / bells.sum(1) ** 2, sigmas)  # the centre keeps less, the wider the bell
    assert sigma.max() <= 2 + 1e-2
    assert sigma.min() < 0.4 and sigma.max() > 1.8  # of 64 draws; below 0.2 the spot stays as it is
