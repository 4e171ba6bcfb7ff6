"""Draws points of one image with lines to where they were found in another."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch

from dino_jax.pictures.page import page
from dino_jax.pictures.sheet import save

RIGHT, WRONG = "#009E73", "#D55E00"  # Okabe and Ito, "Color Universal Design", 2008

Pair = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Two images uint8, points in the first and in the second `(points, 2)` as shares, right or wrong `(points,)`."""


def matches(pairs: Sequence[Pair], names: Sequence[str], path: str | os.PathLike, *, title: str) -> Path:
    """Draws pairs of images side by side, one pair a row, right matches in green and wrong ones in orange.

    Args:
      pairs: see `Pair`.
      names: a line above each.
      path: the PNG to write.
    """
    figure, axes = page([pair[:2] for pair in pairs], title=title, names=names, below=0.35, panel=3.2)
    for (left, right), (first, second, source, target, verdicts) in zip(axes, pairs, strict=True):
        sizes = [np.array(image.shape[1::-1]) for image in (first, second)]
        for start, end, verdict in zip(source * sizes[0], target * sizes[1], verdicts, strict=True):
            color = RIGHT if verdict else WRONG
            line = ConnectionPatch(
                start, end, "data", "data", axesA=left, axesB=right, color=color, linewidth=1.0, alpha=0.8
            )
            figure.add_artist(line)
            for panel, place in ((left, start), (right, end)):
                panel.plot(*place, "o", color=color, markersize=3.5, markeredgecolor="white", markeredgewidth=0.5)
                panel.set_xlim(0, sizes[panel is right][0])
                panel.set_ylim(sizes[panel is right][1], 0)
    handles = [
        Line2D([], [], color=color, marker="o", label=label) for color, label in ((RIGHT, "right"), (WRONG, "wrong"))
    ]
    figure.legend(handles=handles, loc="lower left", ncols=2, fontsize=8, frameon=False)
    return save(figure, path)
