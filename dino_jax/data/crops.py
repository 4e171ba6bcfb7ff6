"""Multi-crop geometry on the host: which windows of an image the networks see, resized and flipped.

Colours are distorted later, on the device (`photometry`).
"""

import math

import numpy as np
from PIL import Image

from dino_jax.data.fit import is_photograph, resize

RATIO = (3 / 4, 4 / 3)  # width / height of a window: torchvision's RandomResizedCrop default, used by DINO v1 to v3
ATTEMPTS = 10
GLOBAL_NUMBER = 2  # of all three generations

Window = tuple[int, int, int, int]
"""Top, left, height, width."""


def multi_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    global_size: int,
    global_scale: tuple[float, float],
    local_size: int,
    local_scale: tuple[float, float],
    local_number: int,
    horizontal_flips: bool,
    gram_size: int = 0,
) -> dict[str, np.ndarray]:
    """Cuts the global and local crops of one image (DINO, section 3.1: multi-crop).

    Args:
      image: uint8 or uint16 (height, width, channels).
      rng: source of every random choice.
      global_size, local_size: side of the crops in pixels.
      global_scale, local_scale: range of a window's share of the image's area.
      local_number: local crops; there are two global ones.
      horizontal_flips: mirror each crop with probability one half.
      gram_size: side of the Gram teacher's crops, which show the same windows, flipped alike; 0 for none.

    Returns:
      in the type of the image, "global_crops" (2, global_size, global_size, channels); "local_crops" (local_number,
      local_size, local_size, channels); "gram_crops" (2, gram_size, gram_size, channels) if `gram_size`.
    """
    ready = prepared(image)
    shapes = {"global_crops": (GLOBAL_NUMBER, global_size), "local_crops": (local_number, local_size)}
    shapes |= {"gram_crops": (GLOBAL_NUMBER, gram_size)} if gram_size else {}
    crops = {
        name: np.empty((number, size, size, image.shape[2]), image.dtype) for name, (number, size) in shapes.items()
    }
    for kind, scale, number in (("global", global_scale, GLOBAL_NUMBER), ("local", local_scale, local_number)):
        for view in range(number):
            window = random_window(rng, *image.shape[:2], scale=scale)
            flip = horizontal_flips and rng.random() < 0.5
            for name in ("global_crops", "gram_crops") if kind == "global" else ("local_crops",):
                if name in crops:
                    crop = resized_crop(ready, window, size=crops[name].shape[1])
                    crops[name][view] = crop[:, ::-1] if flip else crop
    return crops


def random_window(rng: np.random.Generator, height: int, width: int, *, scale: tuple[float, float]) -> Window:
    """Draws a window as torchvision's RandomResizedCrop does.

    Its area is uniform in `scale` of the image's, its aspect log-uniform in `RATIO`; after ten windows that do not
    fit, the largest centred window whose aspect is within `RATIO`.
    """
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        window_width, window_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < window_width <= width and 0 < window_height <= height:
            top = int(rng.integers(height - window_height + 1))
            return top, int(rng.integers(width - window_width + 1)), window_height, window_width
    window_width, window_height = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - window_height) // 2, (width - window_width) // 2, window_height, window_width


def prepared(image: np.ndarray) -> Image.Image | np.ndarray:
    """Returns an image as `resized_crop` cuts it fastest: of 8 bits and RGB, as an image of Pillow."""
    return Image.fromarray(image) if is_photograph(image) else image


def resized_crop(image: Image.Image | np.ndarray, window: Window, *, size: int) -> np.ndarray:
    """Resizes a window of a `prepared` image to (size, size, channels), bicubic and antialiased.

    The window is cut out first: `resize(box=...)` would let the filter reach pixels outside the window.
    """
    top, left, height, width = window
    if isinstance(image, np.ndarray):
        return resize(image[top : top + height, left : left + width], (size, size))
    cut = image.crop((left, top, left + width, top + height))
    return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))
