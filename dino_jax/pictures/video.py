"""Draws masks over the frames of videos, as strips and as GIFs."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ImageColor

from dino_jax.pictures import film
from dino_jax.pictures.colors import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, paint
from dino_jax.pictures.page import PANEL, page, save, to_width

OBJECTS = ("black", ORANGE, SKY, YELLOW, PURPLE, GREEN, VERMILION, BLUE)  # label 0, the background, is never painted
OPACITY = 0.6
FRAMES_PER_SECOND = 8


def overlay(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paints objects 1, 2, ... of a mask `(height, width)` over a frame, uint8 `(height, width, 3)`; 255 is void."""
    colors = np.array([ImageColor.getrgb(color) for color in OBJECTS], np.uint8)
    kinds = np.where(mask > 0, (mask - 1) % (len(OBJECTS) - 1) + 1, 0)
    painted = paint(frame, kinds, colors, opacity=OPACITY)
    return np.where(((mask > 0) & (mask != 255))[..., None], painted, frame)


def strips(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], path: str | os.PathLike, *, title: str) -> Path:
    """Draws rows of frames with their masks.

    Args:
      rows: a line of text, frames uint8 `(frames, height, width, 3)` and masks `(frames, height, width)`.
      path: the PNG to write.
    """
    lines = []
    for text, frames, masks in rows:
        pictures = [to_width(overlay(*pair), PANEL) for pair in zip(frames, masks, strict=True)]
        lines.append([(text if column == 0 else "", picture) for column, picture in enumerate(pictures)])
    return save(page(lines, title=title), path)


def gif(frames: np.ndarray, masks: Sequence[np.ndarray], path: str | os.PathLike) -> Path:
    """Writes a video with its masks as an endless GIF; several masks, such as truth and prediction, side by side.

    Args:
      frames: uint8 `(frames, height, width, 3)`.
      masks: each `(frames, height, width)`.
    """
    images = [
        page([[("", to_width(overlay(frame, mask[number]), PANEL)) for mask in masks]])
        for number, frame in enumerate(frames)
    ]
    return film.gif(images, path, per_second=FRAMES_PER_SECOND)
