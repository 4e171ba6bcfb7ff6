"""Draws points of one image with lines to where they were found in another."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dino_jax.pictures.colors import BLUE, RIGHT, WRONG
from dino_jax.pictures.page import GAP, PAPER, page, save, to_width

WIDTH = 480  # pixels of an image
FINE = 3  # lines are drawn so many times larger, so that they become smooth

Pair = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""Two images uint8, points in the first and in the second `(points, 2)` as shares, and which are right `(points,)`."""


def matches(pairs: Sequence[Pair], names: Sequence[str], path: str | os.PathLike, *, title: str) -> Path:
    """Draws pairs of images side by side, one pair a row, right matches in green and wrong ones in orange.

    Where it is not known which are right, all are blue.

    Args:
      pairs: see `Pair`.
      names: a line above each.
      path: the PNG to write.
    """
    rows = [[(name, _joined(*pair))] for name, pair in zip(names, pairs, strict=True)]
    judged = any(pair[4] is not None for pair in pairs)
    legend = [(RIGHT, "right"), (WRONG, "wrong")] if judged else [(BLUE, "each other's nearest")]
    return save(page(rows, title=title, legend=legend), path)


def _joined(
    first: np.ndarray, second: np.ndarray, source: np.ndarray, target: np.ndarray, verdicts: np.ndarray | None
) -> np.ndarray:
    """Draws two images side by side, with a line for each pair of points."""
    parts = [Image.fromarray(to_width(image, FINE * WIDTH)) for image in (first, second)]
    shift = FINE * (WIDTH + GAP)
    canvas = Image.new("RGB", (shift + FINE * WIDTH, max(part.height for part in parts)), PAPER)
    for part, left in zip(parts, (0, shift), strict=True):
        canvas.paste(part, (left, 0))
    draw, radius = ImageDraw.Draw(canvas), 4 * FINE
    colors = [BLUE] * len(source) if verdicts is None else [RIGHT if right else WRONG for right in verdicts]
    for start, end, color in zip(source * parts[0].size, target * parts[1].size + (shift, 0), colors, strict=True):
        draw.line((*start, *end), fill=color, width=2 * FINE)
        for point in (start, end):
            draw.ellipse((*(point - radius), *(point + radius)), fill=color, outline="white", width=FINE)
    return np.asarray(canvas.reduce(FINE))
