"""Draws objects that were found: their boxes beside the true ones, and the map they were cut from."""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from dino_jax.pictures.page import page
from dino_jax.pictures.sheet import save

FOUND, TRUE = "#E69F00", "#56B4E9"  # Okabe and Ito, "Color Universal Design", 2008
COLUMNS = ("boxes", "patches of the object", "second eigenvector")

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def discoveries(
    rows: Sequence[tuple[np.ndarray, Sequence[Box], Box, np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    *,
    title: str,
) -> Path:
    """Draws images with the true boxes and the one found, the patches it surrounds, and the eigenvector.

    Args:
      rows: image uint8 `(height, width, 3)`, true boxes, the box found, bool patches `(rows, columns)`, eigenvector
        `(rows, columns)`.
      path: the PNG to write.
    """
    pictures = []
    for image, _, _, mask, vector in rows:
        patches = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
        kept = np.where(patches[..., None], image, (image * 0.25).astype(np.uint8))
        pictures.append([image, kept, _colored(vector, image.shape[:2])])
    # Two images to a line: a page of single lines would be tall and narrow.
    lines = [[panel for row in pictures[start : start + 2] for panel in row] for start in range(0, len(pictures), 2)]
    columns = list(COLUMNS) * min(2, len(pictures))
    figure, axes = page(lines, title=title, columns=columns, below=0.35, panel=1.7)
    panels = [panel for line in axes for panel in line][:: len(COLUMNS)]
    for panel, (_, true, found, _, _) in zip(panels, rows, strict=True):
        for box in true:
            _outline(panel, box, TRUE)
        _outline(panel, found, FOUND)
    lines_of = [
        Line2D([], [], color=color, linewidth=2, label=label) for color, label in ((FOUND, "found"), (TRUE, "true"))
    ]
    figure.legend(handles=lines_of, loc="lower left", ncols=2, fontsize=8, frameon=False)
    return save(figure, path)


def _outline(axes: Axes, box: Box, color: str) -> None:
    left, top, right, bottom = box
    for line_color, width in (("black", 3.2), (color, 1.8)):
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=line_color, lw=width))


def _colored(vector: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Turns an eigenvector into colours, its mean into the middle one."""
    spread = max(float(abs(vector - vector.mean()).max()), 1e-12)
    shares = Image.fromarray((0.5 + (vector - vector.mean()) / (2 * spread)).astype(np.float32))
    enlarged = np.clip(np.asarray(shares.resize((size[1], size[0]), Image.Resampling.BICUBIC)), 0, 1)
    return np.round(255 * matplotlib.colormaps["RdBu_r"](enlarged)[..., :3]).astype(np.uint8)
