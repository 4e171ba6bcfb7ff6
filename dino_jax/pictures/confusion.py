"""Draws which classes are taken for which."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dino_jax.pictures.sheet import DPI, save

MOST = 16
CELL = 0.42  # inches


def confusion(
    counts: np.ndarray, names: Sequence[str], path: str | os.PathLike, *, title: str, most: int = MOST
) -> Path:
    """Draws the part of a confusion matrix that concerns the classes with the lowest accuracy, in per cent of each.

    Args:
      counts: `(classes, classes)` integers, truth by prediction.
      names: of the classes.
      path: the PNG to write.
      most: how many classes at most.
    """
    totals = counts.sum(axis=1)
    present = np.flatnonzero(totals)
    accuracies = np.diag(counts)[present] / totals[present]
    worst = present[np.argsort(accuracies, kind="stable")[:most]]
    shares = 100 * counts[np.ix_(worst, worst)] / totals[worst][:, None]
    count = len(worst)
    # A letter of a name is about 0.075 inches.
    margin = 0.075 * max(len(names[index][:24]) for index in worst) + 0.3
    inches = max(margin + count * CELL + 0.3, 0.095 * len(title)), 0.75 + count * CELL + margin
    figure = Figure(figsize=inches, dpi=DPI)
    figure.text(0.07 / inches[0], 1 - 0.2 / inches[1], title, size=11, weight="bold", va="center")
    note = "rows: truth, columns: prediction, % of the row" + (f"; worst {count}" if len(present) > count else "")
    figure.text(0.07 / inches[0], 1 - 0.45 / inches[1], note, size=8, va="center", color="#777777")
    size = count * CELL
    axes = figure.add_axes((margin / inches[0], margin / inches[1], size / inches[0], size / inches[1]))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    labels = [names[index] if len(names[index]) <= 24 else f"{names[index][:23]}…" for index in worst]
    axes.set_xticks(range(count), labels, rotation=90, size=8)
    axes.set_yticks(range(count), labels, size=8)
    axes.tick_params(length=0)
    for row in range(count):
        for column in range(count):
            if shares[row, column] >= 0.5:
                color = "white" if shares[row, column] > 55 else "black"
                axes.text(column, row, f"{shares[row, column]:.0f}", size=7.5, ha="center", va="center", color=color)
    return save(figure, path)
