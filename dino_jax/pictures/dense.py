"""Draws class maps and depth maps beside their truth."""

import colorsys
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch

from dino_jax.pictures.page import GAP, PANEL, page
from dino_jax.pictures.sheet import save

OPACITY = 0.7  # of a class's colour over the photograph
VOID = 255
LEGEND_LINE = 0.2
LEGEND_LETTER = 0.075  # inches a letter of the legend takes
MOST_NAMES = 40


def class_colors(classes: int) -> np.ndarray:
    """Returns a colour for each class, uint8 `(classes, 3)`: 20 distinct ones, then hues that go round."""
    if classes <= 20:
        table = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
        # Strong colours first; their pale partners only when they run out.
        colors = [*table[::2], *table[1::2]]
    else:
        golden = 0.61803398875  # neighbours differ most
        colors = [colorsys.hsv_to_rgb(i * golden % 1, 0.5 + 0.5 * (i % 2), 1 - 0.2 * (i % 3)) for i in range(classes)]
    return np.round(255 * np.asarray(colors[:classes])).astype(np.uint8)


def paint(image: np.ndarray, mask: np.ndarray, colors: np.ndarray, *, opacity: float = OPACITY) -> np.ndarray:
    """Lays the colours of a map `(height, width)` over an image uint8 of that size; 255 turns black."""
    known = mask != VOID
    painted = np.zeros_like(image)
    painted[known] = np.round((1 - opacity) * image[known] + opacity * colors[mask[known]]).astype(np.uint8)
    return painted


def masks(
    images: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
    path: str | os.PathLike,
    *,
    title: str,
) -> Path:
    """Draws class maps over their images, one row for each image, with a legend of the largest classes that occur.

    Args:
      images: uint8 `(height, width, 3)` of any sizes.
      maps: by heading, for each image integers `(height, width)`, 255 void.
      class_names: of the labels.
      path: the PNG to write.
    """
    colors = class_colors(len(class_names))
    rows = [
        [image, *(paint(image, group[number], colors) for group in maps.values())]
        for number, image in enumerate(images)
    ]
    area = np.bincount(
        np.concatenate([np.ravel(mask) for group in maps.values() for mask in group]), minlength=VOID + 1
    )
    occurring = [int(label) for label in np.argsort(-area, kind="stable") if area[label] and label != VOID]
    shown = sorted(occurring[:MOST_NAMES])
    handles = [Patch(color=colors[label] / 255, label=class_names[label]) for label in shown]
    if len(occurring) > len(shown):
        handles.append(Patch(color="none", label=f"and {len(occurring) - len(shown)} smaller"))
    if area[VOID]:
        handles.append(Patch(color="black", label="not labelled"))
    width = (1 + len(maps)) * (PANEL + GAP)
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = max(1, int(width / (0.5 + LEGEND_LETTER * longest)))
    below = 0.15 + LEGEND_LINE * -(-len(handles) // across)
    figure, _ = page(rows, title=title, columns=["image", *maps], below=below)
    figure.legend(handles=handles, loc="lower left", ncols=across, fontsize=8, frameon=False, handlelength=1.2)
    return save(figure, path)


def depths(
    images: Sequence[np.ndarray], maps: Mapping[str, Sequence[np.ndarray]], path: str | os.PathLike, *, title: str
) -> Path:
    """Draws depth maps beside their images; each row has its own range, that of the first map.

    Args:
      images: uint8 `(height, width, 3)`.
      maps: by heading, for each image depths `(rows, columns)`, 0 where unknown; the first is the truth.
      path: the PNG to write.
    """
    rows = []
    for number, image in enumerate(images):
        truth = next(iter(maps.values()))[number]
        low, high = np.percentile(truth[truth > 0], [1, 99])
        rows.append([image, *(_colored(group[number], low, high) for group in maps.values())])
    figure, _ = page(rows, title=title, columns=["image", *maps], below=0.4)
    width, height = figure.get_size_inches()
    bar = figure.add_axes((0.35 - 0.25, 0.24 / height, 0.8, 0.1 / height))
    figure.colorbar(ScalarMappable(Normalize(0, 1), "magma_r"), cax=bar, orientation="horizontal", ticks=[])
    figure.text(0.1 - 0.05 / width, 0.29 / height, "near", ha="right", va="center", size=8)
    figure.text(0.9 + 0.05 / width, 0.29 / height, "far", ha="left", va="center", size=8)
    return save(figure, path)


def _colored(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """Turns depths into colours, near ones bright; unknown ones grey."""
    shares = np.clip((depth - low) / max(high - low, 1e-12), 0, 1)
    colors = np.round(255 * matplotlib.colormaps["magma_r"](shares)[..., :3]).astype(np.uint8)
    colors[depth <= 0] = 128
    return colors
