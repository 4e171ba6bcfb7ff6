"""Draws accuracies over a swept setting, one line per choice."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dino_jax.pictures.history import COLORS
from dino_jax.pictures.sheet import DPI, save


def over_setting(
    values: Sequence[float],
    lines: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    title: str,
    setting: str,
    chosen: tuple[str, int] | None = None,
) -> Path:
    """Draws one line per choice over the values of a setting, on a logarithmic axis.

    Args:
      values: `(values,)`, above 0.
      lines: accuracies (0 to 1) `(values,)` by name.
      path: the PNG to write.
      setting: what the values are.
      chosen: name and index of the point to mark.
    """
    figure = Figure(figsize=(6.4, 3.8), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=11, weight="bold")
    axes = figure.subplots()
    for (name, scores), color in zip(lines.items(), COLORS * 3, strict=False):
        axes.plot(values, 100 * np.asarray(scores), color=color, marker="o", markersize=3, linewidth=1.5, label=name)
    if chosen is not None:
        point = values[chosen[1]], 100 * lines[chosen[0]][chosen[1]]
        axes.plot(*point, "o", markersize=11, fillstyle="none", color="black", label="chosen")
    axes.set_xscale("log")
    axes.set_xlabel(setting, size=9)
    axes.set_ylabel("accuracy, %", size=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.legend(fontsize=8, edgecolor="none")
    return save(figure, path)
