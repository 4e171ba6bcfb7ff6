"""Colour distortion of crops on the device, under jit: torchvision v2's operations on floats in [0, 1].

Inside, images are planar, (channels, ..., height, width): elementwise work on whole rows instead of triplets is several
times faster on a CPU and does not pad three channels to 128 lanes on a TPU. Every random number is drawn for the
full batch, so the result does not depend on how the batch axis is sharded.

Three channels are taken for red, green and blue. Of any others, the grey is their mean, and there is no hue.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

GREY = (0.2989, 0.587, 0.114)  # torchvision's luma weights of red, green and blue (ITU-R 601)
BLUR_RADIUS = 4  # kernel of 9 taps, DINO v2 and v3
BLUR_SIGMA = (0.1, 2.0)
SOLARIZE_THRESHOLD = 128 / 255


def brightness(image: Array, factor: Array) -> Array:
    """Scales (channels, ..., height, width) by `factor` (...)."""
    return _clip(image * _per_image(factor))


def contrast(image: Array, factor: Array) -> Array:
    """Moves each pixel of (channels, ..., height, width) away from the image's mean grey by `factor` (...)."""
    mean = _grey(image).mean((-2, -1), keepdims=True)
    return _blend(image, mean, factor)


def saturation(image: Array, factor: Array) -> Array:
    """Moves each pixel of (channels, ..., height, width) away from its own grey by `factor` (...)."""
    return _blend(image, _grey(image), factor)


def hue(image: Array, shift: Array) -> Array:
    """Turns the colour circle of (3, ..., height, width) by `shift` (...), in turns, through HSV.

    Other channels than these three stay as they are.
    """
    if len(image) != len(GREY):
        return image
    red, green, blue = image
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    is_red, is_green = value == red, value == green
    difference = jnp.where(is_red, green - blue, jnp.where(is_green, blue - red, red - green))
    sector = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    angle = sector + difference / jnp.where(chroma == 0, 1, chroma) + 6 * _per_image(shift)
    angle = angle - 6 * jnp.floor(angle / 6)
    # HSV to RGB without branches: each channel is a trapezium of the angle, which is in sixths of a turn.
    wheel = (jnp.abs(angle - 3) - 1, 2 - jnp.abs(angle - 2), 2 - jnp.abs(angle - 4))
    return jnp.stack([value - chroma * (1 - _clip(channel)) for channel in wheel])


def grayscale(image: Array) -> Array:
    """Replaces each pixel of (channels, ..., height, width) by its grey."""
    return jnp.broadcast_to(_grey(image), image.shape)


def gaussian_blur(image: Array, sigma: Array) -> Array:
    """Blurs (channels, ..., height, width) with a 9-tap Gaussian of `sigma` (...) pixels, borders reflected."""
    bell = jnp.exp(-0.5 * (jnp.arange(BLUR_RADIUS + 1) / sigma[..., None]) ** 2)
    weights = bell / (2 * bell.sum(-1, keepdims=True) - 1)  # the centre counts once, the others on both sides
    for axis in (-2, -1):
        padding = [(0, 0)] * image.ndim
        padding[axis] = (BLUR_RADIUS, BLUR_RADIUS)
        # Without the barrier XLA recomputes the first pass for every tap of the second.
        padded = lax.optimization_barrier(jnp.pad(image, padding, mode="reflect"))
        shifted = partial(_window, padded, length=image.shape[axis], axis=axis)
        image = _per_image(weights[..., 0]) * shifted(BLUR_RADIUS) + sum(
            _per_image(weights[..., i]) * (shifted(BLUR_RADIUS - i) + shifted(BLUR_RADIUS + i))
            for i in range(1, BLUR_RADIUS + 1)
        )
    return image


def solarize(image: Array) -> Array:
    """Inverts every value of (channels, ..., height, width) that is at least 128/255."""
    return jnp.where(image >= SOLARIZE_THRESHOLD, 1 - image, image)


def normalize(crops: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Maps uint8 or uint16 (..., channels) to float32: to [0, 1], minus `mean`, over `std`, per channel."""
    return _standardize(_unit(crops), mean, std)


def distort(
    key: Array,
    crops: Array,
    *,
    blur: Sequence[float],
    solarize: Sequence[float],
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    jitter_probability: float,
    gray_probability: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Array:
    """Distorts the colours of crops and normalises them (DINOv2/v3 recipe: jitter, grey, blur, solarise).

    Args:
      key: source of every random choice.
      crops: uint8 or uint16 (batch, views, height, width, channels).
      blur: probability of a Gaussian blur for each view; sigma uniform in 0.1 to 2 pixels.
      solarize: probability of solarisation at 128 for each view.
      brightness, contrast, saturation: factors are uniform in [max(0, 1 - x), 1 + x], per image.
      hue: shift uniform in [-x, x] turns, per image.
      jitter_probability: probability that an image's brightness, contrast, saturation and hue change; their order
        is drawn once per view.
      gray_probability: probability that an image loses its colours.
      mean, std: per channel, of values in [0, 1].

    Returns:
      float32 (batch, views, height, width, channels).
    """
    batch_and_views = crops.shape[:2]
    jitter_key, gray_key, sigma_key, blur_key, solarize_key = jax.random.split(key, 5)
    image = _unit(jnp.moveaxis(crops, -1, 0))
    if jitter_probability > 0:
        limits = [(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation)] + [(-hue, hue)]
        image = _jitter(jitter_key, image, limits=limits, probability=jitter_probability)
    if gray_probability > 0:
        image = _choose(gray_key, gray_probability, grayscale(image), image)
    if max(blur) > 0:
        sigma = jax.random.uniform(sigma_key, batch_and_views, minval=BLUR_SIGMA[0], maxval=BLUR_SIGMA[1])
        image = _choose(blur_key, blur, gaussian_blur(image, sigma), image)
    if max(solarize) > 0:
        image = _choose(solarize_key, solarize, _solarize(image), image)
    return _standardize(jnp.moveaxis(image, 0, -1), mean, std)


_solarize = solarize  # `distort` has an argument of this name
_OPERATIONS = (brightness, contrast, saturation, hue)


def _jitter(key: Array, image: Array, *, limits: Sequence[tuple[float, float]], probability: float) -> Array:
    """Applies the four operations to (channels, batch, views, height, width), their order drawn for each view."""
    factor_key, order_key, chosen_key = jax.random.split(key, 3)
    low, high = jnp.asarray(limits, jnp.float32).T[:, :, None, None]
    factors = jax.random.uniform(factor_key, (len(_OPERATIONS), *image.shape[1:3]), minval=low, maxval=high)
    orders = jax.vmap(lambda key: jax.random.permutation(key, len(_OPERATIONS)))(
        jax.random.split(order_key, image.shape[2])
    )

    def one_view(view: int) -> Array:
        def apply(position: int, changed: Array) -> Array:
            operation = orders[view, position]
            # A real branch: only the chosen operation runs, unlike a select over all four.
            return lax.switch(operation, _OPERATIONS, changed, factors[operation, :, view])

        return lax.fori_loop(0, len(_OPERATIONS), apply, image[:, :, view])

    jittered = [one_view(view) for view in range(image.shape[2])]
    return _choose(chosen_key, probability, jnp.stack(jittered, axis=2), image)


def _choose(key: Array, probability: float | Sequence[float], changed: Array, image: Array) -> Array:
    """Takes images of (channels, batch, views, height, width) from `changed` with `probability`, one or by view."""
    chosen = jax.random.uniform(key, image.shape[1:3]) < jnp.asarray(probability)
    return jnp.where(_per_image(chosen), changed, image)


def _unit(samples: Array) -> Array:
    """Maps integers to float32 in [0, 1], the largest of their type to 1."""
    return samples.astype(jnp.float32) / jnp.iinfo(samples.dtype).max


def _standardize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def _per_image(values: Array) -> Array:
    """Aligns (...) with (channels, ..., height, width)."""
    return values[..., None, None]


def _window(padded: Array, start: int, *, length: int, axis: int) -> Array:
    return lax.slice_in_dim(padded, start, start + length, axis=axis)


def _grey(image: Array) -> Array:
    """Returns (1, ..., height, width)."""
    if len(image) != len(GREY):
        return image.mean(0, keepdims=True)
    return (GREY[0] * image[0] + GREY[1] * image[1] + GREY[2] * image[2])[None]


def _blend(image: Array, other: Array, factor: Array) -> Array:
    factor = _per_image(factor)
    return _clip(factor * image + (1 - factor) * other)


def _clip(image: Array) -> Array:
    return jnp.clip(image, 0, 1)
