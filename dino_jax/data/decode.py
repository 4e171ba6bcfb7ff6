"""Turns one image file, or its bytes, into 8-bit RGB, or says in a word why it cannot."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from dino_jax.data import tiff

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
TURN = Image.Transpose
TURNS = {  # by the EXIF orientation
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_90,
}

# About large images and damaged EXIF data, neither of which keeps an image from being used.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# A crop of a strip a few pixels wide shows a single object stretched beyond recognition. The limits only exclude
# rulers, separators and tracking pixels; photographs, panoramas included, stay well inside them.
MIN_SIDE = 8
MAX_ASPECT = 20
MOST_BYTES = 2**32  # of a TIFF's samples


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, without the file's name."""


def decode(image: bytes | str | Path) -> np.ndarray:
    """Decodes an image to RGB.

    JPEG, PNG, WebP, BMP and TIFF (first page); grey, palette and CMYK become RGB; transparent pixels are laid over
    white; of 16-bit samples the high byte is kept; the EXIF orientation is applied.

    Args:
      image: the encoded bytes, or the path of a file.

    Returns:
      uint8 (height, width, 3), read-only.

    Raises:
      BadImage: empty, not an image, truncated, too large (Pillow's decompression-bomb limit), or absurdly shaped.
    """
    try:
        return np.asarray(_open(image if isinstance(image, bytes) else Path(image).read_bytes()))
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow's plug-ins raise nearly every built-in exception
        raise BadImage(" ".join(f"{type(error).__name__}: {error}".split())) from None


def _open(encoded: bytes) -> Image.Image:
    if not encoded:
        raise BadImage("the file is empty")
    page = _unusual_tiff(encoded)
    if page is not None:
        return _to_rgb(_high_bytes(page))
    image = opened(encoded)
    return turned(_to_rgb(_to_8_bit(image)), orientation(image))


def opened(encoded: bytes) -> Image.Image:
    """Opens an image with Pillow and reads its pixels, once its header has passed `check_size`."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise BadImage(unknown(encoded)) from None
    except Image.DecompressionBombError:  # Pillow's own, from twice the limit on
        raise too_large("its") from None
    check_size(*image.size)
    image.load()
    return image


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) if there is none that can be read.

    The tag alone is read: Pillow's own functions write the others anew, which fails where one of them is odd.
    """
    try:
        found = image.getexif().get(tiff.ORIENTATION, 1)
    except Exception:  # damaged data
        return 1
    return found if found in range(1, 9) else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turns an image upright."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def unknown(encoded: bytes) -> str:
    """Says why Pillow knows no such image."""
    page = _tiff(encoded)
    if page is None:
        return "not an image of a known format"
    return f"a TIFF of {page.channels} x {page.bits} bits that cannot be read; save it with 8 or 16 bits per channel"


def check_size(width: int, height: int) -> None:
    """Refuses by the header alone, before any memory is spent on pixels."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise too_large(f"{width} x {height}")
    if min(width, height) < MIN_SIDE:
        raise BadImage(f"{width} x {height} pixels: a side is shorter than {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f"{width} x {height} pixels: the sides differ by more than a factor of {MAX_ASPECT}")


def too_large(size: str) -> BadImage:
    """Returns the refusal of an image of so many pixels."""
    return BadImage(f"{size} pixels exceed the limit of {Image.MAX_IMAGE_PIXELS} pixels: cut it into tiles")


def check_page(page: tiff.Page) -> None:
    """Refuses a TIFF by its header alone, as `check_size`; a damaged one may promise any number of channels."""
    check_size(page.width, page.height)
    if page.width * page.height * page.channels * page.bits // 8 > MOST_BYTES:
        raise BadImage(f"{page.width} x {page.height} pixels of {page.channels} x {page.bits} bits are too many")


def _unusual_tiff(encoded: bytes) -> tiff.Page | None:
    """Returns the page of a 16-bit TIFF in a layout that Pillow mistakes or does not know; None of anything else."""
    page = _tiff(encoded)
    return page if page is not None and page.bits == 16 and not page.plain else None


def _tiff(encoded: bytes) -> tiff.Page | None:
    """Returns the page of a TIFF, None of anything else."""
    if not encoded.startswith(tiff.HEADERS):
        return None
    try:
        return tiff.Page(encoded)
    except Exception:  # a damaged header, or one that Pillow may understand
        return None


def _high_bytes(page: tiff.Page) -> Image.Image:
    """Decodes a TIFF page of 16 bits and keeps the high bytes."""
    check_page(page)
    samples = page.samples()
    if samples.dtype != np.uint16:
        raise BadImage(f"{samples.dtype} samples have no known range; save it with 8 or 16 bits per channel, unsigned")
    mode = _mode(page, samples.shape[2])
    high = tiff.upright(samples[..., : len(mode)], page.orientation) >> 8  # a letter for each channel
    height, width = high.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(high, np.uint8).tobytes())


def _mode(page: tiff.Page, channels: int) -> str:
    """Returns Pillow's name of a page's pixels; a fourth channel that is not opacity, perhaps infrared, is left out."""
    if channels == 1:
        return "L"
    if channels == 2 and page.alpha:
        return "LA"
    if channels == 4 and page.inks:
        return "CMYK"
    if channels in (3, 4) and page.colour:
        return "RGBA" if page.alpha and channels == 4 else "RGB"
    raise BadImage(f"{channels} channels that are not labelled as those of a photograph; save three of them as RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Keeps the high byte of 16-bit grey, as Pillow does for 16-bit colour; its own conversion clips at 255."""
    if image.mode in ("I", "F"):
        raise BadImage("32-bit samples have no known range; save it with 8 or 16 bits per channel")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    over_white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    over_white.alpha_composite(image.convert("RGBA"))
    return over_white.convert("RGB")
