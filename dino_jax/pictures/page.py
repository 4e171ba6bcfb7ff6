"""Pages of pictures side by side, each under its caption: one layout for all that is no chart."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dino_jax.data.fit import resize
from dino_jax.data.whole import write_whole
from dino_jax.pictures.colors import RIGHT, WRONG

Panel = tuple[str, np.ndarray]
"""A caption and a uint8 image `(height, width, 3)`."""

Color = str | tuple[int, ...]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

PANEL = 300  # pixels, the side of a picture that is shown in no size of its own
GAP = 8
FRAME = 4
SMALLEST, LARGEST, TITLE = 11, 18, 22  # pixels of letters
INK, PAPER = "#28282c", "white"
# Pillow's own font has no letters beyond ASCII.
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


def page(rows: Sequence[Sequence[Panel]], *, title: str = "", legend: Sequence[tuple[Color, str]] = ()) -> np.ndarray:
    """Lays out pictures in their own pixels, in columns as wide as the widest of them.

    A caption may run on above the pictures at its right that have none. Letters are as large as all captions allow;
    where even the smallest are too large, the columns are further apart.

    Args:
      rows: of captions and pictures of any sizes.
      title: above all.
      legend: colours and what they mean, below all.

    Returns:
      A uint8 image.

    Raises:
      ValueError: when there is no picture.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("page: there is no picture to draw")
    widest = max(picture.shape[1] for row in rows for _, picture in row)
    captions = [caption for row in rows for caption in _rooms(row, columns)]
    rooms = [(text, room * (widest + GAP) - GAP) for text, room in captions]
    font = _font(rooms, size=LARGEST)
    across = GAP + max([widest, *(math.ceil((font.getlength(text) + GAP) / room) - GAP for text, room in captions)])
    bold = _font([(title, columns * across - GAP)], size=TITLE, bold=True)
    width = max(columns * across, math.ceil(bold.getlength(title)) + GAP) + GAP
    key = _legend(legend, width - 2 * GAP) if legend else np.empty((0, 0, 3), np.uint8)
    width = max(width, key.shape[1] + 2 * GAP)

    top, places = GAP + (2 * TITLE if title else 0), []
    for row in rows:
        top += round(1.7 * font.size) if any(text for text, _ in row) else 0
        places.append(top)
        top += max(picture.shape[0] for _, picture in row) + GAP
    sheet = Image.new("RGB", (width, top + len(key)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP + 0.8 * TITLE), title, fill=INK, font=bold, anchor="lm")
    for top, row in zip(places, rows, strict=True):
        for column, (text, picture) in enumerate(row):
            left = GAP + column * across
            draw.text((left, top - 0.75 * font.size), text, fill=INK, font=font, anchor="lm")
            sheet.paste(Image.fromarray(picture), (left, top))
    if legend:
        sheet.paste(Image.fromarray(key), (GAP, sheet.height - len(key)))
    return np.asarray(sheet)


def in_rows(panels: Sequence[Panel], columns: int) -> list[Sequence[Panel]]:
    """Splits panels into rows."""
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def overview(groups: Sequence[tuple[str, Sequence[np.ndarray]]], *, title: str = "") -> np.ndarray:
    """Lays out groups of pictures of one height, without gaps, each group under its name, two groups in a row.

    Panoramas are lower than the others, so that no picture is wider than two panels.
    """
    panels = []
    for name, pictures in groups:
        broadest = max(picture.shape[1] / picture.shape[0] for picture in pictures)
        scaled = [_to_height(picture, round(min(PANEL, 2 * PANEL / broadest))) for picture in pictures]
        panels.append((name, np.concatenate(scaled, axis=1)))
    return page(in_rows(panels, 2), title=title)


def to_width(picture: np.ndarray, width: int) -> np.ndarray:
    """Resizes a picture in its shape."""
    return resize(picture, (max(1, round(picture.shape[0] * width / picture.shape[1])), width))


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    return resize(picture, (height, max(1, round(picture.shape[1] * height / picture.shape[0]))))


def outline(picture: np.ndarray, box: Box, color: str) -> np.ndarray:
    """Draws a box with black edges."""
    image = Image.fromarray(picture)
    left, top, right, bottom = box
    for ink, out, line in (("black", 3, 6), (color, 2, 4)):
        ImageDraw.Draw(image).rectangle((left - out, top - out, right + out, bottom + out), outline=ink, width=line)
    return np.asarray(image)


def framed(picture: np.ndarray, *, right: bool) -> np.ndarray:
    """Draws a frame that says whether a picture is right or wrong."""
    image = Image.fromarray(picture)
    box = (0, 0, image.width - 1, image.height - 1)
    ImageDraw.Draw(image).rectangle(box, outline=RIGHT if right else WRONG, width=FRAME)
    return np.asarray(image)


def save(pixels: np.ndarray, path: str | os.PathLike) -> Path:
    """Writes a uint8 image as PNG, whole or not at all."""
    path = Path(path)
    write_whole(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
    return path


def _rooms(row: Sequence[Panel], columns: int) -> list[tuple[str, int]]:
    """Returns the captions of a row, with the number of columns each has to itself."""
    starts = [column for column, (text, _) in enumerate(row) if text]
    ends = [*starts[1:], columns]
    return [(row[start][0], end - start) for start, end in zip(starts, ends, strict=False)]


def _font(rooms: Sequence[tuple[str, float]], *, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Returns the largest font, up to a size, in which each text fits into its pixels; the smallest where none does."""
    file = str(FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))
    font = ImageFont.truetype(file, size)
    while font.size > SMALLEST and any(font.getlength(text) > room for text, room in rooms):
        font = ImageFont.truetype(file, font.size - 1)
    return font


def _legend(entries: Sequence[tuple[Color, str]], width: int) -> np.ndarray:
    """Draws squares of colours with their meaning, in as many columns as fit."""
    size = LARGEST - 2
    font = _font([], size=size)
    line, each = 2 * size, 3 * size + math.ceil(max(font.getlength(text) for _, text in entries))
    columns = max(1, (width + size) // each)
    image = Image.new("RGB", (max(width, each), line * -(-len(entries) // columns)), PAPER)
    draw = ImageDraw.Draw(image)
    for index, (color, text) in enumerate(entries):
        left, top = index % columns * each, index // columns * line
        draw.rectangle((left, top + size / 2, left + size, top + 1.5 * size), fill=color)
        draw.text((left + 1.5 * size, top + size), text, fill=INK, font=font, anchor="lm")
    return np.asarray(image)
