"""Draws how features are spread: their singular values, and cosines of pairs."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dino_jax.pictures.history import COLORS
from dino_jax.pictures.sheet import DPI, save

SMALLEST = 1e-5  # share that is drawn: what the last norm projects away, to 1e-8, would squeeze all the rest


def spread(
    spectra: Mapping[str, np.ndarray], cosines: Mapping[str, np.ndarray], path: str | os.PathLike, *, title: str
) -> Path:
    """Draws singular values `(values,)`, as shares of their sum, beside histograms of cosines `(pairs,)`, by name."""
    figure = Figure(figsize=(9.4, 3.6), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", size=11, weight="bold")
    left, right = figure.subplots(1, 2)
    for (name, values), color in zip(spectra.items(), COLORS, strict=False):
        left.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=1.5, label=name)
    left.set_yscale("log")
    left.set_ylim(bottom=max(SMALLEST, left.get_ylim()[0]))
    left.set_xlabel("component", size=9)
    left.set_ylabel("share of the singular values", size=9)
    bins = np.linspace(min(-0.05, *(float(values.min()) for values in cosines.values())), 1, 60)
    for (name, values), color in zip(cosines.items(), COLORS, strict=False):
        weights = np.full(len(values), 100 / len(values))
        right.hist(values, bins=bins, weights=weights, color=color, alpha=0.55, label=name)
    right.set_xlabel("cosine", size=9)
    right.set_ylabel("pairs, %", size=9)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, edgecolor="none")
    return save(figure, path)
