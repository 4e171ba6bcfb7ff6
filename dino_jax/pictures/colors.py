"""How values become colours: palettes, grids of values, and maps laid over images."""

import colorsys
import math

import matplotlib
import numpy as np
from PIL import Image

# Okabe and Ito, "Color Universal Design", 2008: they stay apart for colour-blind readers.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
RIGHT, WRONG = GREEN, VERMILION
DARK = np.array([14, 14, 18], np.float32)
VOID = 255
RINGS = ((1, 1), (0.5, 0.8), (1, 0.6), (0.45, 1), (1, 0.8), (0.6, 0.6))  # saturation and value
WHITE = 99.5  # percentile of a dark image of 16 bits that is drawn white
DIM = 1 / 8  # of the range: what is darker was measured in fewer bits than its file has


def visible(images: np.ndarray) -> np.ndarray:
    """Returns what a person sees of images of any channels and bits: the first three channels, or the first, in grey.

    Args:
      images: `(..., height, width, channels)`, uint8 or uint16. Dark ones of 16 bits are stretched, all alike.

    Returns:
      uint8 `(..., height, width, 3)`.
    """
    shown = images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)
    if shown.dtype == np.uint8:
        return shown
    most = np.iinfo(shown.dtype).max
    white = max(np.percentile(shown, WHITE), 1)
    scaled = shown * (255 / (white if white < DIM * most else most))
    return np.rint(np.minimum(scaled, 255)).astype(np.uint8)


def enlarge(values: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Resizes a grid `(rows, columns)` or `(rows, columns, channels)` to float32 `(height, width, ...)`, bicubic."""
    if values.ndim == 3:
        return np.stack([enlarge(channel, height=height, width=width) for channel in np.moveaxis(values, -1, 0)], -1)
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))


def colored(values: np.ndarray, *, low: float = 0.0, high: float = 1.0, colors: str = "inferno") -> np.ndarray:
    """Turns values from `low` to `high` into uint8 colours `(..., 3)` of one of Matplotlib's colour maps."""
    shares = (values - low) / max(high - low, 1e-12)
    return matplotlib.colormaps[colors](shares, bytes=True)[..., :3]


def heat(
    values: np.ndarray, *, height: int, width: int, high: float, low: float = 0.0, colors: str = "inferno"
) -> np.ndarray:
    """Draws a grid of values from `low` to `high` as uint8 colours `(height, width, 3)`."""
    return colored(enlarge(values, height=height, width=width), low=low, high=high, colors=colors)


def scale(colors: str) -> np.ndarray:
    """Draws all colours of a colour map side by side, as a key to others; uint8."""
    return colored(np.linspace(0, 1, 300), colors=colors)[None].repeat(14, axis=0)


def glow(image: np.ndarray, values: np.ndarray, *, high: float) -> np.ndarray:
    """Lights up an image where values are high: dimmed and grey at 0, itself with a warm tint at `high`."""
    height, width = image.shape[:2]
    share = np.clip(enlarge(values, height=height, width=width) / max(high, 1e-12), 0, 1)[..., None]
    pixels = image.astype(np.float32)
    dimmed = 0.3 * pixels.mean(-1, keepdims=True) + 0.05 * pixels
    return (dimmed * (1 - share) + (0.65 * pixels + 0.35 * colored(share[..., 0])) * share).astype(np.uint8)


def paint_components(colors: np.ndarray, foreground: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Draws colours `(rows, columns, 3)` on dark where `foreground` `(rows, columns)` is false; uint8."""
    painted = np.clip(enlarge(colors, height=height, width=width), 0, 1) * 255
    # A soft edge of half a patch, in the place where a hard one would be.
    cover = np.clip(2 * enlarge(foreground.astype(np.float32), height=height, width=width) - 0.5, 0, 1)[..., None]
    return np.rint(painted * cover + DARK * (1 - cover)).astype(np.uint8)


def class_colors(classes: int) -> np.ndarray:
    """Returns a colour for each class, uint8 `(classes, 3)`, no two alike and neighbours far apart.

    Up to 20 are Matplotlib's; more lie on rings of the colour wheel.
    """
    if classes <= 20:
        table = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
        # Strong colours first; their pale partners only when they run out.
        colors = [*table[::2], *table[1::2]]
    else:
        rings = len(RINGS)
        hues = -(-classes // rings)
        step = next(step for step in range(max(1, int(0.618 * hues)), hues + 1) if math.gcd(step, hues) == 1)
        colors = []
        for index in range(classes):
            turn, ring = divmod(index, rings)
            hue = (turn * step + ring * 2.5 * hues / rings) % hues + ring / rings  # each ring is turned a little
            colors.append(colorsys.hsv_to_rgb(hue / hues % 1, *RINGS[ring]))
    return np.round(255 * np.asarray(colors[:classes])).astype(np.uint8)


def paint(image: np.ndarray, mask: np.ndarray, colors: np.ndarray, *, opacity: float) -> np.ndarray:
    """Lays the colours of a map `(height, width)` over an image uint8 of that size; 255 turns black."""
    known = mask != VOID
    painted = np.zeros_like(image)
    painted[known] = np.round((1 - opacity) * image[known] + opacity * colors[mask[known]]).astype(np.uint8)
    return painted
