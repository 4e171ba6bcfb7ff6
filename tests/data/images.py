"""Makes image files for the tests."""

import io

import numpy as np
from PIL import Image


def photograph(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """Returns a smooth uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """Encodes an array or Pillow image."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()
