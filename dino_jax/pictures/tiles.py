"""Pictures at native resolution: photographs and maps of the same size side by side, each pixel kept."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dino_jax.data.shards import write_whole

Panel = tuple[str, np.ndarray]
"""A caption and a uint8 image `(height, width, 3)`."""

# Pillow's own font has no letters beyond ASCII.
FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
GAP = 6
PAPER = (250, 250, 248)
INK = (40, 40, 44)
DARK = np.array([14, 14, 18], np.float32)


def enlarge(values: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Resizes a grid `(rows, columns)` or `(rows, columns, channels)` to float32 `(height, width, ...)`, bicubic."""
    if values.ndim == 3:
        return np.stack([enlarge(channel, height=height, width=width) for channel in np.moveaxis(values, -1, 0)], -1)
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))


def to_bytes(colors: np.ndarray) -> np.ndarray:
    """Turns colours in [0, 1] into uint8."""
    return np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8)


def heat(values: np.ndarray, *, high: float, height: int, width: int) -> np.ndarray:
    """Draws a grid of values from 0 to `high` as uint8 colours `(height, width, 3)`."""
    share = enlarge(values, height=height, width=width) / max(high, 1e-12)
    return to_bytes(matplotlib.colormaps["inferno"](np.clip(share, 0, 1))[..., :3])


def glow(image: np.ndarray, values: np.ndarray, *, high: float) -> np.ndarray:
    """Lights up an image where values are high: dimmed and grey at 0, itself with a warm tint at `high`."""
    height, width = image.shape[:2]
    share = np.clip(enlarge(values, height=height, width=width) / max(high, 1e-12), 0, 1)[..., None]
    pixels = image.astype(np.float32)
    dimmed = 0.3 * pixels.mean(-1, keepdims=True) + 0.05 * pixels
    warm = matplotlib.colormaps["inferno"](share[..., 0])[..., :3] * 255
    return np.clip(dimmed * (1 - share) + (0.65 * pixels + 0.35 * warm) * share, 0, 255).astype(np.uint8)


def paint_components(colors: np.ndarray, foreground: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Draws colours `(rows, columns, 3)` on dark where `foreground` `(rows, columns)` is false; uint8."""
    painted = np.clip(enlarge(colors, height=height, width=width), 0, 1) * 255
    # A soft edge of half a patch, in the place where a hard one would be.
    cover = np.clip(2 * enlarge(foreground.astype(np.float32), height=height, width=width) - 0.5, 0, 1)[..., None]
    return np.rint(painted * cover + DARK * (1 - cover)).astype(np.uint8)


def tile(panels: Sequence[Panel], *, columns: int) -> np.ndarray:
    """Lays out panels of one size in rows, with their captions above them, further apart where those need it; uint8."""
    height, width = panels[0][1].shape[:2]
    font = _font(width)
    caption = int(font.size * 1.7) if any(text for text, _ in panels) else 0
    width = max(width, *(int(font.getlength(text)) + 4 for text, _ in panels))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (GAP + columns * (width + GAP), GAP + rows * (caption + height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (text, pixels) in enumerate(panels):
        row, column = divmod(index, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (caption + height + GAP)
        draw.text((left + 2, top + caption / 2 - 1), text, fill=INK, font=font, anchor="lm")
        sheet.paste(Image.fromarray(pixels), (left, top + caption))
    return np.asarray(sheet)


def overview(rows: Sequence[tuple[str, Sequence[np.ndarray]]], *, height: int) -> np.ndarray:
    """Lays out small groups of pictures, scaled to one height, each group under its name, two groups in a row."""
    groups = []
    for name, pictures in rows:
        small = [_scaled(picture, height) for picture in pictures]
        groups.append((name, np.concatenate(small, axis=1)))
    width = max(group.shape[1] for _, group in groups)
    padded, font = [], _font(width)
    for name, group in groups:
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = PAPER
        canvas[:, : group.shape[1]] = group
        padded.append((_fitting(name, font, width - 4), canvas))
    return tile(padded, columns=2)


def _scaled(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def _font(width: int) -> ImageFont.FreeTypeFont:
    """Returns the font of captions above panels of a width."""
    return ImageFont.truetype(FONT, size=max(11, min(18, width // 22)))


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cuts a text to the width of its panel."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def save(pixels: np.ndarray, path: str | os.PathLike) -> Path:
    """Writes a uint8 image as PNG, whole or not at all."""
    path = Path(path)
    write_whole(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
    return path
