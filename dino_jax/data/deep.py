"""Decodes images of 16 bits or of any number of channels without loss.

Photographs are seen as 8-bit RGB (`decode`). What is measured with more bits or in more bands, such as X-rays,
microscopy and satellite images, comes through here whole.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dino_jax.data import tiff
from dino_jax.data.decode import BadImage, check_page, check_size, decode, opened, orientation, turned

PNG = b"\x89PNG\r\n\x1a\n"
RGB, GREY_ALPHA, RGBA = 2, 4, 6  # types of a PNG that Pillow reduces to 8 bits


def sample_type(channels: int, bits: int = 0) -> type[np.unsignedinteger]:
    """Returns the type in which a network of so many channels sees images.

    Args:
      channels: of the network.
      bits: 8 or 16; 0 takes 8 for three channels, 16 for others.

    Raises:
      ValueError: for 8 bits of other channels than RGB.
    """
    if bits == 8 and channels != 3:
        raise ValueError(f"8 bits are read of RGB only, not of {channels} channels: use 16")
    return np.uint16 if bits == 16 or channels != 3 else np.uint8


def decoder(channels: int, bits: int = 0) -> Callable[..., np.ndarray]:
    """Returns what decodes images for a network, to `sample_type` of the same arguments."""
    return decode if sample_type(channels, bits) is np.uint8 else partial(decode_deep, channels=channels)


def decode_deep(image: bytes | str | Path, *, channels: int) -> np.ndarray:
    """Decodes an image to 16 bits; 8-bit samples are multiplied by 257, so that white stays white.

    TIFF is read with all its channels, whether they lie together, in planes or in pages; other formats as Pillow reads
    them. The EXIF orientation is applied. Grey is repeated when three channels are asked for. Transparency is dropped
    then, kept with four channels.

    Args:
      image: the encoded bytes, or the path of a file.
      channels: of the network.

    Returns:
      uint16 (height, width, channels).

    Raises:
      BadImage: unreadable, of other channels, or with samples of no known range (32 bits, floats).
    """
    try:
        samples = _samples(image if isinstance(image, bytes) else Path(image).read_bytes(), channels)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # damaged files make the decoders raise nearly every built-in exception
        raise BadImage(" ".join(f"{type(error).__name__}: {error}".split())) from None
    samples = _with_channels(samples, channels)
    if samples.dtype == np.uint8:
        return samples.astype(np.uint16) * 257
    return samples


def _samples(encoded: bytes, channels: int) -> np.ndarray:
    """Returns uint8 or uint16 (height, width, channels), upright."""
    if not encoded:
        raise BadImage("the file is empty")
    if encoded.startswith(tiff.HEADERS):
        page = tiff.Page(encoded)
        check_page(page)
        samples = _of_tiff(encoded, page, channels)
    elif encoded.startswith(PNG) and encoded[24] == 16 and encoded[25] in (RGB, GREY_ALPHA, RGBA):  # bit depth
        samples = _deep_png(encoded)
    else:
        samples = _by_pillow(encoded)
    if samples.dtype not in (np.uint8, np.uint16):
        raise BadImage(f"{samples.dtype} samples have no known range; save it with 8 or 16 bits per channel")
    return np.ascontiguousarray(samples, samples.dtype.newbyteorder("="))


def _of_tiff(encoded: bytes, page: tiff.Page, channels: int) -> np.ndarray:
    if page.converted and page.bits != 8:
        raise BadImage(f"its colours, of {page.bits} bits, are YCbCr or Lab: save it as RGB")
    if page.palette or page.inks or page.converted:  # what they mean is a matter of colour, which has 8 bits
        return _by_pillow(encoded)
    try:
        return tiff.upright(page.samples(pages=channels), page.orientation)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        if page.plain and (page.bits == 8 or page.channels == 1):
            return _by_pillow(encoded)
        raise BadImage("its compression needs imagecodecs: pip install imagecodecs, or save it with zlib") from None


def _deep_png(encoded: bytes) -> np.ndarray:
    try:
        import cv2
    except ImportError:
        raise BadImage("such a 16-bit PNG needs OpenCV: pip install -e '.[video]', or save it as TIFF") from None
    check_size(int.from_bytes(encoded[16:20]), int.from_bytes(encoded[20:24]))
    samples = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise BadImage("truncated or damaged PNG")
    # OpenCV orders blue, green, red and repeats grey; the transparency of grey is dropped.
    kept = [0] if encoded[25] == GREY_ALPHA else [2, 1, 0, *range(3, samples.shape[2])]
    with Image.open(io.BytesIO(encoded)) as header:
        return tiff.upright(samples[..., kept], orientation(header))


def _by_pillow(encoded: bytes) -> np.ndarray:
    image = opened(encoded)
    found = orientation(image)
    if image.mode.startswith("I;16"):
        return tiff.upright(np.asarray(image)[..., None], found)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert({"1": "L", "LA": "L", "PA": "RGBA"}.get(image.mode, "RGB"))
    samples = np.asarray(turned(image, found))
    return samples if samples.ndim == 3 else samples[..., None]


def _with_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    found = samples.shape[2]
    if found == channels:
        return samples
    if channels == 3 and found == 1:
        return np.repeat(samples, 3, axis=2)
    if channels == 3 and found == 4:
        return samples[..., :3]
    raise BadImage(f"{found} channels, where the network takes {channels}")
