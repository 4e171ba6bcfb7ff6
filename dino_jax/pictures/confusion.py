"""Draws which classes are taken for which."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dino_jax.pictures.charts import DPI, GREY, save

MOST, MORE = 16, 8
CELL = 0.42  # inches


def worst_classes(counts: np.ndarray) -> np.ndarray:
    """Returns the `MOST` classes of lowest accuracy of a confusion matrix, worst first; not those without images."""
    totals = counts.sum(axis=1)
    present = np.flatnonzero(totals)
    accuracies = np.diag(counts)[present] / totals[present]
    return present[np.argsort(accuracies, kind="stable")[:MOST]]


def confusion(counts: np.ndarray, names: Sequence[str], path: str | os.PathLike, *, title: str) -> Path:
    """Draws the rows of a confusion matrix of the `MOST` classes with the lowest accuracy, in per cent of each.

    Its columns are these classes and the `MORE` others that they are most often taken for; the rest have one together.

    Args:
      counts: `(classes, classes)` integers, truth by prediction.
      names: of the classes.
      path: the PNG to write.
    """
    totals = counts.sum(axis=1)
    worst = worst_classes(counts)
    shares = (counts[worst] / totals[worst][:, None]).sum(axis=0)
    shares[worst] = 0
    more = [label for label in np.argsort(-shares, kind="stable")[:MORE] if shares[label]]
    predicted = np.array([*worst, *more], int)
    among = counts[np.ix_(worst, predicted)]
    others = totals[worst] - among.sum(axis=1)
    columns = np.column_stack([among, others]) if others.any() else among
    shares = 100 * columns / totals[worst][:, None]
    count = shares.shape[1]
    figure = Figure(figsize=(count * CELL, len(worst) * CELL), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    note = "rows: truth, columns: prediction, % of the row"
    if np.count_nonzero(totals) > len(worst):
        note += f"; worst {len(worst)}"
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    labels = [names[index] if len(names[index]) <= 24 else f"{names[index][:23]}…" for index in predicted]
    axes.set_xticks(range(count), [*labels, "others"][:count], rotation=90, size=8)
    axes.set_yticks(range(len(worst)), labels[: len(worst)], size=8)
    axes.tick_params(length=0)
    left, inch = figure.get_tightbbox().x0 / figure.get_figwidth(), 1 / figure.get_figheight()  # the names begin left
    figure.text(left, 1 + 0.4 * inch, title, size=12, weight="bold")
    figure.text(left, 1 + 0.15 * inch, note, size=8, color=GREY)
    for row in range(len(worst)):
        for column in range(count):
            if shares[row, column] >= 0.5:
                color = "white" if shares[row, column] > 55 else "black"
                axes.text(column, row, f"{shares[row, column]:.0f}", size=7.5, ha="center", va="center", color=color)
    return save(figure, path)
