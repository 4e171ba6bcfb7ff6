"""Brings images of any size to the size at which a network sees them; 8 or 16 bits, any number of channels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dino_jax.data.decode import BadImage

FITS = ("centre", "crop", "squash", "native")
PUBLISHED = 256 / 224  # the shorter side of an image, by the side of the square that is cut from its centre


def fit(image: np.ndarray, *, size: int, how: str = "crop", multiple: int = 1) -> np.ndarray:
    """Fits one image `(height, width, channels)`, uint8 or uint16, without changing its kind.

    Args:
      size: side of the result in pixels; not used by "native".
      how: "centre" resizes the shorter side to 256 / 224 of `size` and cuts the centre, as the papers classify; "crop"
        resizes it to `size`, so that less is lost; "squash" resizes both sides to `size`; "native" keeps the pixels
        and cuts the centre to multiples of `multiple`.
      multiple: the network's patch.

    Raises:
      ValueError: an unknown `how`.
      BadImage: an image smaller than one patch.
    """
    if how == "centre":
        return cut(_shorter(image, round(size * PUBLISHED)), height=size, width=size)
    if how == "crop":
        return centre_crop(image, size=size)
    if how == "squash":
        return resize(image, (size, size))
    if how != "native":
        raise ValueError(f"fit must be one of {FITS}, got {how!r}")
    height, width = (side - side % multiple for side in image.shape[:2])
    if not height or not width:
        raise BadImage(f"{image.shape[1]} x {image.shape[0]} pixels: smaller than a patch of {multiple}")
    return cut(image, height=height, width=width)


def centre_crop(image: np.ndarray, *, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` (bicubic, antialiased) and cuts the centre: `(size, size, channels)`."""
    return cut(_shorter(image, size), height=size, width=size)


def _shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to `size`, the other one in proportion, rounded down."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    return resize(image, (max(size, height * size // shorter), max(size, width * size // shorter)))


def cut(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Cuts the centre of an image."""
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def is_photograph(image: np.ndarray) -> bool:
    """Tells whether an image is RGB of 8 bits, which Pillow knows whole."""
    return image.dtype == np.uint8 and image.shape[2] == 3


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes an image `(rows, columns, channels)` to `(height, width)`, bicubic and antialiased, to the same dtype."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if is_photograph(image):
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    # Pillow resizes 16-bit samples and other numbers of channels only one channel at a time, as floats.
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for channel in np.moveaxis(image, -1, 0)
    ]
    limits = np.iinfo(image.dtype)
    return np.clip(np.rint(np.stack(channels, axis=-1)), limits.min, limits.max).astype(image.dtype)
