"""A page of pictures in rows and columns with headings, and room for a legend: the base of the dense pictures."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dino_jax.pictures.sheet import DPI

PANEL = 2.0  # inches, width
GAP = 0.06
TITLE = 0.42
HEADING = 0.24
LETTER = 0.095  # inches a letter of the title takes


def page(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    title: str,
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    below: float = 0.0,
    panel: float = PANEL,
) -> tuple[Figure, list[list[Axes]]]:
    """Lays out pictures.

    Args:
      rows: of pictures, uint8 `(height, width, 3)` of any sizes; each row is as high as its first one needs.
      title: above all.
      columns: a heading for each column.
      names: a line above each row.
      below: inches kept free at the bottom, for a legend.
      panel: inches, the width of a picture.

    Returns:
      The figure, and the axes of every picture, in its pixels.

    Raises:
      ValueError: when there is no picture.
    """
    if not rows or not rows[0]:
        raise ValueError("page: there is no picture to draw")
    heights = [panel * row[0].shape[0] / row[0].shape[1] for row in rows]
    name = HEADING if names else 0
    top = TITLE + (HEADING if columns else 0)
    width = max(2 * GAP + max(len(row) for row in rows) * (panel + GAP), LETTER * len(title))
    height = top + sum(tall + GAP + name for tall in heights) + GAP + below
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.text(GAP / width, 1 - 0.19 / height, title, va="center", size=11, weight="bold")
    for number, heading in enumerate(columns):
        left = GAP + number * (panel + GAP) + panel / 2
        figure.text(left / width, 1 - (TITLE + HEADING / 2) / height, heading, va="center", ha="center", size=9)
    grid: list[list[Axes]] = []
    for number, (row, tall) in enumerate(zip(rows, heights, strict=True)):
        if names:
            figure.text(GAP / width, 1 - (top + HEADING / 2) / height, names[number], va="center", size=9)
        top += name
        grid.append([])
        for column, picture in enumerate(row):
            place = ((GAP + column * (panel + GAP)) / width, 1 - (top + tall) / height, panel / width, tall / height)
            grid[-1].append(_show(figure.add_axes(place), picture, size=(round(panel * DPI), round(tall * DPI))))
        top += tall + GAP
    return figure, grid


def _show(axes: Axes, picture: np.ndarray, *, size: tuple[int, int]) -> Axes:
    """Fills axes with a picture, enlarged by Pillow; the axes count in the picture's own pixels."""
    axes.set_axis_off()
    enlarged = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    axes.imshow(enlarged, extent=(0, picture.shape[1], picture.shape[0], 0), interpolation="nearest", aspect="auto")
    return axes
