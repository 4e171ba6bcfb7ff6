"""Draws class maps and depth maps beside their truth."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dino_jax.data.fit import resize
from dino_jax.pictures.colors import VOID, class_colors, colored, paint, scale
from dino_jax.pictures.page import PANEL, Color, Panel, page, save, to_width

OPACITY = 0.7  # of a class's colour over the photograph
MOST_NAMES = 40


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
        [image, *(paint(image, group[number], colors, opacity=OPACITY) for group in maps.values())]
        for number, image in enumerate(images)
    ]
    area = np.bincount(
        np.concatenate([np.ravel(mask) for group in maps.values() for mask in group]), minlength=VOID + 1
    )
    occurring = [int(label) for label in np.argsort(-area, kind="stable") if area[label] and label != VOID]
    shown = sorted(occurring[:MOST_NAMES])
    legend: list[tuple[Color, str]] = [(tuple(colors[label].tolist()), class_names[label]) for label in shown]
    if len(occurring) > len(shown):
        legend.append(("white", f"and {len(occurring) - len(shown)} smaller"))
    if area[VOID]:
        legend.append(("black", "not labelled"))
    return save(page(_under(["image", *maps], rows), title=title, legend=legend), path)


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
    return save(page([*_under(["image", *maps], rows), [("near to far", scale("magma_r"))]], title=title), path)


def _under(headings: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> list[list[Panel]]:
    """Puts a heading above each column of pictures, all of one width; each row is as high as its first picture."""
    panels = []
    for number, row in enumerate(rows):
        height = to_width(row[0], PANEL).shape[0]
        scaled = [resize(picture, (height, PANEL)) for picture in row]
        panels.append([("" if number else heading, picture) for heading, picture in zip(headings, scaled, strict=True)])
    return panels


def _colored(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """Turns depths into colours, near ones bright; unknown ones grey."""
    return np.where((depth > 0)[..., None], colored(depth, low=low, high=high, colors="magma_r"), np.uint8(128))
