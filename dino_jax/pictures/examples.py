"""Draws rows of example images, each framed as right or wrong where that is known."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dino_jax.pictures.sheet import DPI, save

PANEL = 1.15  # inches
GAP = 0.07
TEXT = 0.24
TITLE = 0.42
RIGHT, WRONG = "#009E73", "#D55E00"  # Okabe and Ito, "Color Universal Design", 2008


@dataclass(frozen=True)
class Example:
    """One image `(height, width, 3)` uint8, a word below it, and whether it is right (None: neither)."""

    image: np.ndarray
    caption: str = ""
    right: bool | None = None


def examples(rows: Sequence[tuple[str, Sequence[Example]]], path: str | os.PathLike, *, title: str) -> Path:
    """Draws rows of images, each row under its own line of text.

    Args:
      rows: text and images of each; rows may differ in length.
      path: the PNG to write.

    Raises:
      ValueError: when there is no image.
    """
    columns = max((len(images) for _, images in rows), default=0)
    if not columns:
        raise ValueError("examples: there is no image to draw")
    captions = any(example.caption for _, images in rows for example in images)
    height = TEXT + PANEL + (0.2 if captions else 0) + GAP
    longest = max(len(title) * 0.095, *(0.072 * len(text) for text, _ in rows))
    inches = max(2 * GAP + columns * (PANEL + GAP), longest), TITLE + len(rows) * height + GAP
    figure = Figure(figsize=inches, dpi=DPI)

    def write(left: float, top: float, text: str, **style: object) -> None:
        figure.text(left / inches[0], 1 - top / inches[1], text, va="center", **style)  # type: ignore[arg-type]

    write(GAP, 0.19, title, size=11, weight="bold")
    for number, (text, images) in enumerate(rows):
        top = TITLE + number * height
        write(GAP, top + TEXT / 2, text, size=8.5)
        for column, example in enumerate(images):
            left = GAP + column * (PANEL + GAP)
            bottom = inches[1] - top - TEXT - PANEL
            axes = figure.add_axes((left / inches[0], bottom / inches[1], PANEL / inches[0], PANEL / inches[1]))
            axes.set_axis_off()
            axes.imshow(example.image, aspect="equal")
            if example.right is not None:
                color = RIGHT if example.right else WRONG
                axes.add_patch(
                    Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=color, linewidth=4)
                )
            write(left + PANEL / 2, top + TEXT + PANEL + 0.1, example.caption, size=6.5, ha="center")
    return save(figure, path)
