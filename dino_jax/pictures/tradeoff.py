"""Draws global against dense quality: long training gains the one and may lose the other (DINOv3, figure 5)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dino_jax.pictures.history import COLORS, GREY
from dino_jax.pictures.sheet import DPI, save

GLOBAL, DENSE = "knn/teacher", "dense/miou"


def global_against_dense(
    metrics: Sequence[Mapping[str, float]],
    path: str | os.PathLike,
    *,
    phases: Sequence[tuple[str, int]] = (),
) -> Path:
    """Draws k-NN accuracy and mIoU over the steps, and one against the other; the step of the best mIoU is marked.

    Args:
      metrics: records with "step", of which some hold `knn/teacher` and `dense/miou` (0 to 1).
      path: the PNG to write.
      phases: name and first step of every phase.

    Raises:
      ValueError: when fewer than two records hold both numbers.
    """
    both = [(r["step"], r[GLOBAL], r[DENSE]) for r in metrics if GLOBAL in r and DENSE in r]
    if len(both) < 2:
        raise ValueError(f"global_against_dense: {len(both)} records hold {GLOBAL} and {DENSE}; two are needed")
    steps, knn, miou = np.array(both, float).T
    best = int(np.nanargmax(miou))
    figure = Figure(figsize=(10.4, 3.5), dpi=DPI, layout="constrained")
    title = "Global against dense quality of the EMA teacher"
    figure.suptitle(title, x=0.01, ha="left", size=12, weight="bold")
    time, plane = figure.subplots(1, 2, width_ratios=(1.6, 1))
    _over_time(time, steps, knn, miou, best)
    for name, first in phases[1:]:
        time.axvline(first, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        time.text(first, 1.01, f" {name}", transform=time.get_xaxis_transform(), size=7, color=GREY)
    _plane(plane, steps, 100 * knn, 100 * miou, best)
    return save(figure, path)


def _over_time(axes: Axes, steps: np.ndarray, knn: np.ndarray, miou: np.ndarray, best: int) -> None:
    right = axes.twinx()
    for place, values, label, color in (
        (axes, knn, "k-NN accuracy, %", COLORS[0]),
        (right, miou, "mIoU, %", COLORS[1]),
    ):
        place.plot(steps, 100 * values, color=color, linewidth=1.6, marker="o", markersize=3)
        place.set_ylabel(label, color=color, size=8)
        place.tick_params(labelsize=7.5, length=2.5, color=GREY)
        place.spines["top"].set_visible(False)
    right.plot(steps[best], 100 * miou[best], marker="*", markersize=11, color=COLORS[1])
    axes.set_xlabel("step", size=8)


def _plane(axes: Axes, steps: np.ndarray, knn: np.ndarray, miou: np.ndarray, best: int) -> None:
    axes.plot(knn, miou, color=GREY, linewidth=0.9, zorder=1)
    points = axes.scatter(knn, miou, c=steps, cmap="viridis", s=18, zorder=2)
    axes.plot(knn[best], miou[best], marker="*", markersize=12, color=COLORS[1], linestyle="none", zorder=3)
    axes.annotate(
        f"best dense, step {steps[best]:g}", (knn[best], miou[best]), (4, 6), textcoords="offset points", size=7.5
    )
    axes.margins(0.12)
    axes.set_xlabel("k-NN accuracy, %", size=8)
    axes.set_ylabel("mIoU, %", size=8)
    axes.tick_params(labelsize=7.5, length=2.5, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    bar = axes.figure.colorbar(points, ax=axes, pad=0.02)
    bar.set_label("step", size=8)
    bar.ax.tick_params(labelsize=7)
