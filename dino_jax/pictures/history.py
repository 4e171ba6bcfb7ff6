"""Draws how a run went: losses, schedules, norms, health and accuracy over the steps."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dino_jax.pictures.charts import COLORS, GREY, chart, save, series_of

COLUMNS = 4
# Drawn as a running mean, because they jump from batch to batch.
NOISY = ("loss/", "grad_norm/", "update_norm/")


@dataclass(frozen=True)
class Panel:
    """One plot: its title, the metrics in it by the start of their names, and whether its axis is logarithmic."""

    title: str
    prefixes: tuple[str, ...]
    log: bool = False


PANELS = (
    Panel("loss", ("loss/total", "loss/dino", "loss/ibot")),
    Panel("KoLeo loss", ("loss/koleo",)),
    Panel("Gram loss", ("loss/gram",)),
    Panel("k-NN accuracy", ("knn/",)),
    Panel("mIoU of a linear probe on patches", ("dense/",)),
    Panel("gradient norm", ("grad_norm/",), log=True),
    Panel("update norm", ("update_norm/",), log=True),
    Panel("teacher entropy / log(prototypes)", ("health/dino_entropy_share", "health/ibot_entropy_share")),
    Panel("share of prototypes used", ("health/dino_used_share", "health/ibot_used_share")),
    Panel("effective rank of CLS (RankMe)", ("health/rankme",)),
    Panel("mean cosine", ("health/patch_cosine", "health/cls_patch_cosine", "health/cls_cosine")),
    Panel("distance student to teacher", ("health/student_teacher_distance",)),
)
# Not drawn: what a panel above shows as a share, and a number that falls with it.
REDUNDANT = ("entropy", "used", "effective")


def curves(
    metrics: Sequence[Mapping[str, float]],
    path: str | os.PathLike,
    *,
    phases: Sequence[tuple[str, int]] = (),
) -> Path:
    """Draws the logged metrics, one small plot per kind.

    Losses, norms, health and accuracy share the plots of PANELS; every other `schedule/...`, `health/...` and
    `quality/...` metric has its own plot, and metrics of other groups are left out. Non-finite values leave a gap in
    their line.

    Args:
      metrics: records with "step" and flat `group/name` numbers, as `metrics.read_metrics` returns; not every record
        needs every name.
      path: the PNG to write.
      phases: name and first step of every phase, marked in all plots.

    Raises:
      ValueError: when no record holds a metric that can be drawn.
    """
    names = list(dict.fromkeys(name for record in metrics for name in record if name != "step"))
    used = {name for record in metrics for name, value in record.items() if value}
    names = [name for name in names if name in used or not name.startswith("schedule/")]  # 0 all the time: not in use
    panels = layout(names)
    if not panels:
        raise ValueError("curves: no record holds a loss, schedule, norm, health or k-NN number; nothing to draw")
    rows = -(-len(panels) // COLUMNS)
    columns = min(COLUMNS, len(panels))
    figure = chart("Training curves", width=3.3 * columns + 0.2, height=2.35 * rows + 0.6)
    if len(phases) > 1:
        words = ", ".join(f"{name} from step {first:,}" for name, first in phases)
        figure.text(0.99, 1 - 0.14 / figure.get_figheight(), words, ha="right", va="center", size=8, color=GREY)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for (panel, members), place in zip(panels, axes, strict=False):
        _draw(place, panel, {name: series_of(metrics, name) for name in members})
        _mark_phases(place, phases)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    for place in axes[max(0, len(panels) - columns) : len(panels)]:
        place.tick_params(labelbottom=True)
        place.set_xlabel("step", size=8)
    return save(figure, path)


def layout(names: Sequence[str]) -> list[tuple[Panel, list[str]]]:
    """Returns the plots to draw with the metrics in each: PANELS, then one for each other schedule or health metric."""
    known = tuple(prefix for panel in PANELS for prefix in panel.prefixes)
    redundant = tuple(f"health/{head}_{name}" for head in ("dino", "ibot") for name in REDUNDANT)
    rest = [
        name for name in names if name.startswith(("schedule/", "health/", "quality/")) and not name.startswith(known)
    ]
    own = [Panel(_label(name), (name,)) for name in rest if name not in redundant]
    members = [
        (panel, [name for prefix in panel.prefixes for name in names if name.startswith(prefix)])
        for panel in (*PANELS, *own)
    ]
    return [(panel, found) for panel, found in members if found]


def _label(name: str) -> str:
    return name.split("/", 1)[1].replace("_", " ")


def _draw(axes: Axes, panel: Panel, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draws the lines of one panel; those of noisy metrics as a running mean over the faint raw values."""
    for (name, (steps, values)), label, color in zip(series.items(), _labels(list(series)), COLORS * 3, strict=False):
        smooth = running_mean(values) if name.startswith(NOISY) else None
        if smooth is not None:
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
        marker = "o" if len(steps) <= 8 else None
        line = values if smooth is None else smooth
        axes.plot(steps, line, color=color, linewidth=1.5, marker=marker, markersize=3, label=label)
    _scale(axes, np.concatenate([values for _, values in series.values()]), log=panel.log)
    axes.set_title(panel.title, size=9, loc="left", pad=13)
    if len(series) > 1:
        _legend(axes, columns=len(series) if len(series) <= 3 else 2)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _scale(axes: Axes, values: np.ndarray, *, log: bool) -> None:
    """Chooses the range and the tick labels of both axes."""
    values = values[np.isfinite(values)]
    # Of ticks at 1, 2 and 5, a smaller range might hold none.
    if log and len(values) and values.max() > 5 * values.min() > 0:
        axes.set_yscale("log")
        # Where the locator leaves powers of 10 out, it may not be asked for ticks between them: it draws none at all.
        wide = values.max() > 100 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif len(values) and values.min() == values.max() != 0:
        axes.set_ylim(min(0, 1.5 * values[0]), max(0, 1.5 * values[0]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / 1000:g}k" if step >= 10000 else f"{step:g}"))
    axes.tick_params(which="both", labelsize=7.5, length=2.5, color=GREY)


def _legend(axes: Axes, *, columns: int) -> None:
    """Adds a legend at the top, and the room for it above the lines."""
    legend = axes.legend(
        loc="upper right",
        fontsize=7,
        ncols=columns,
        framealpha=0.8,
        edgecolor="none",
        handlelength=1.2,
        columnspacing=1,
        labelspacing=0.2,
    )
    rows = -(-len(legend.get_texts()) // columns)
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(axes.get_ylim())
    axes.set_ylim(*scale.inverted().transform([low, high + (0.05 + 0.09 * rows) * (high - low)]))


def _labels(names: Sequence[str]) -> list[str]:
    """Returns legend labels without the words that all of them end with."""
    words = [_label(name).split() for name in names]
    while len(words) > 1 and all(len(label) > 1 and label[-1] == words[0][-1] for label in words):
        words = [label[:-1] for label in words]
    return [" ".join(label) for label in words]


def running_mean(values: np.ndarray) -> np.ndarray | None:
    """Averages values `(points,)` over a centred 1/20 of the points; None when there are too few. Gaps (NaN) stay."""
    width = len(values) // 20
    if width < 2:
        return None
    finite = np.isfinite(values)
    kernel = np.ones(2 * (width // 2) + 1)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(float), kernel, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _mark_phases(axes: Axes, phases: Sequence[tuple[str, int]]) -> None:
    """Shades every second phase and writes the names above the plot, where there is room."""
    axes.margins(x=0.02)
    low, high = axes.get_xlim()
    ends = [*(first for _, first in phases[1:]), high]
    free = -np.inf
    for index, ((name, first), end) in enumerate(zip(phases, ends, strict=False)):
        if index % 2:
            axes.axvspan(first, end, color="#f0f2f5", zorder=0)
        if index:
            axes.axvline(first, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
        start = max(low, first)
        if start >= free and start < low + 0.9 * (high - low):
            above = axes.get_xaxis_transform()
            axes.text(start, 1.01, name, transform=above, size=7, color=GREY, va="bottom", ha="left")
            free = start + 0.03 * len(name) * (high - low)
    axes.set_xlim(low, high)
