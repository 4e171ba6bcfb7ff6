"""Draws global against dense quality: long training gains the one and may lose the other (DINOv3, figure 5)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from dino_jax.pictures.charts import COLORS, GREY, chart, save, series_of

GLOBAL, DENSE = "knn/teacher", "dense/miou"


def global_against_dense(
    metrics: Sequence[Mapping[str, float]],
    path: str | os.PathLike,
    *,
    phases: Sequence[tuple[str, int]] = (),
) -> Path:
    """Draws k-NN accuracy and mIoU over the steps, and one against the other; the step of the best mIoU is marked.

    Each has steps of its own: the second plot shows every mIoU against the k-NN accuracy of its step, which between two
    measurements lies on the line that joins them.

    Args:
      metrics: records with "step", of which some hold `knn/teacher` or `dense/miou` (0 to 1).
      path: the PNG to write.
      phases: name and first step of every phase.

    Raises:
      ValueError: when there is nothing to compare, see `can_be_drawn`.
    """
    if not can_be_drawn(metrics):
        raise ValueError(f"global_against_dense: {GLOBAL} and {DENSE} need two records each, at steps that overlap")
    (knn_steps, knn), (dense_steps, miou) = (series_of(metrics, name) for name in (GLOBAL, DENSE))
    figure = chart("Global against dense quality of the EMA teacher", width=10.4, height=3.5)
    time, plane = figure.subplots(1, 2, width_ratios=(1.6, 1))
    _over_time(time, (knn_steps, knn), (dense_steps, miou))
    for name, first in phases[1:]:
        time.axvline(first, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        time.text(first, 1.01, f" {name}", transform=time.get_xaxis_transform(), size=7, color=GREY)
    shared = _within(dense_steps, knn_steps)
    steps, miou = dense_steps[shared], miou[shared]
    _plane(plane, steps, 100 * np.interp(steps, knn_steps, knn), 100 * miou, int(np.nanargmax(miou)))
    return save(figure, path)


def can_be_drawn(metrics: Sequence[Mapping[str, float]]) -> bool:
    """Tells whether two records of each quality lie at steps that overlap."""
    (knn_steps, _), (dense_steps, _) = (series_of(metrics, name) for name in (GLOBAL, DENSE))
    return min(len(knn_steps), len(dense_steps)) > 1 and int(_within(dense_steps, knn_steps).sum()) > 1


def _within(steps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tells which steps lie between the first and the last of others."""
    return (steps >= others.min(initial=np.inf)) & (steps <= others.max(initial=-np.inf))


def _over_time(axes: Axes, knn: tuple[np.ndarray, np.ndarray], miou: tuple[np.ndarray, np.ndarray]) -> None:
    right = axes.twinx()
    for place, (steps, values), label, color in (
        (axes, knn, "k-NN accuracy, %", COLORS[0]),
        (right, miou, "mIoU, %", COLORS[1]),
    ):
        place.plot(steps, 100 * values, color=color, linewidth=1.6, marker="o", markersize=3)
        place.set_ylabel(label, color=color, size=8)
        place.tick_params(labelsize=7.5, length=2.5, color=GREY)
        place.spines["top"].set_visible(False)
    steps, values = miou
    best = int(np.nanargmax(values))
    right.plot(steps[best], 100 * values[best], marker="*", markersize=11, color=COLORS[1])
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
