"""Charts: how a figure begins and becomes a file, and the charts of the evaluations."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dino_jax.data.whole import write_whole
from dino_jax.pictures.colors import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

DPI = 150
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#444444")
GREY = "#777777"
SMALLEST = 1e-5  # share that is drawn: what the last norm projects away, to 1e-8, would squeeze all the rest


def chart(title: str, *, width: float, height: float) -> Figure:
    """Returns an empty figure of so many inches under its title."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=12, weight="bold")
    return figure


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure with all that belongs to it as PNG, whole or not at all, and returns the path."""
    path = Path(path)
    # The figure never meets pyplot, whose global state would keep it alive and might ask for a display.
    canvas = FigureCanvasAgg(figure)
    write_whole(path, lambda file: canvas.print_figure(file, format="png", dpi=DPI, bbox_inches="tight"))
    return path


def series_of(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and the values of a number, of the records that have it."""
    found = [(record["step"], record[name]) for record in metrics if name in record]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values


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
    figure = chart(title, width=6.4, height=3.8)
    axes = figure.subplots()
    for (name, scores), color in zip(lines.items(), COLORS * 3, strict=False):
        axes.plot(values, 100 * np.asarray(scores), color=color, marker="o", markersize=3, linewidth=1.5, label=name)
    if chosen is not None:
        point = values[chosen[1]], 100 * lines[chosen[0]][chosen[1]]
        axes.plot(*point, "o", markersize=11, fillstyle="none", color="black", label="chosen")
    axes.set_xscale("log")
    _label(axes, setting, "accuracy, %")
    return save(figure, path)


def spread(
    spectra: Mapping[str, np.ndarray], cosines: Mapping[str, np.ndarray], path: str | os.PathLike, *, title: str
) -> Path:
    """Draws singular values `(values,)`, as shares of their sum, beside histograms of cosines `(pairs,)`, by name."""
    figure = chart(title, width=9.4, height=3.6)
    left, right = figure.subplots(1, 2)
    for (name, values), color in zip(spectra.items(), COLORS, strict=False):
        left.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=1.5, label=name)
    left.set_yscale("log")
    left.set_ylim(bottom=max(SMALLEST, left.get_ylim()[0]))
    _label(left, "component", "share of the singular values")
    bins = np.linspace(min(-0.05, *(float(values.min()) for values in cosines.values())), 1, 60)
    for (name, values), color in zip(cosines.items(), COLORS, strict=False):
        weights = np.full(len(values), 100 / len(values))
        right.hist(values, bins=bins, weights=weights, color=color, alpha=0.55, label=name)
    _label(right, "cosine", "pairs, %")
    return save(figure, path)


def _label(axes: Axes, across: str, up: str) -> None:
    """Adds the names of both axes, a grid and a legend."""
    axes.set_xlabel(across, size=9)
    axes.set_ylabel(up, size=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, edgecolor="none")
