"""Draws points of one image with lines to where they were found in another."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch

from dino_jax.pictures.page import page
from dino_jax.pictures.sheet import save

RIGHT, WRONG, UNJUDGED = "#009E73", "#D55E00", "#0072B2"  # Okabe and Ito, "Color Universal Design", 2008

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
    figure, axes = page([pair[:2] for pair in pairs], title=title, names=names, below=0.35, panel=3.2)
    for (left, other), (first, second, source, target, verdicts) in zip(axes, pairs, strict=True):
        sizes = [np.array(image.shape[1::-1]) for image in (first, second)]
        colors = [UNJUDGED] * len(source) if verdicts is None else [RIGHT if right else WRONG for right in verdicts]
        for start, end, color in zip(source * sizes[0], target * sizes[1], colors, strict=True):
            line = ConnectionPatch(
                start, end, "data", "data", axesA=left, axesB=other, color=color, linewidth=1.0, alpha=0.8
            )
            figure.add_artist(line)
            for panel, place in ((left, start), (other, end)):
                panel.plot(*place, "o", color=color, markersize=3.5, markeredgecolor="white", markeredgewidth=0.5)
                panel.set_xlim(0, sizes[panel is other][0])
                panel.set_ylim(sizes[panel is other][1], 0)
    judged = any(pair[4] is not None for pair in pairs)
    words = [(RIGHT, "right"), (WRONG, "wrong")] if judged else [(UNJUDGED, "each other's nearest")]
    handles = [Line2D([], [], color=color, marker="o", label=label) for color, label in words]
    figure.legend(handles=handles, loc="lower left", ncols=2, fontsize=8, frameon=False)
    return save(figure, path)
