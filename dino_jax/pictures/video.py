"""Draws masks over the frames of videos, as strips and as GIFs."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dino_jax.pictures import film
from dino_jax.pictures.dense import paint
from dino_jax.pictures.page import page
from dino_jax.pictures.sheet import save

# Okabe and Ito, "Color Universal Design", 2008; label 0, the background, is never painted.
OBJECTS = ("#000000", "#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")
OPACITY = 0.6
GIF_HEIGHT = 180
FRAMES_PER_SECOND = 8
GAP = 6  # pixels between the parts of a GIF


def overlay(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paints objects 1, 2, ... of a mask `(height, width)` over a frame, uint8 `(height, width, 3)`; 255 is void."""
    colors = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in OBJECTS], np.uint8)
    kinds = np.where(mask > 0, (mask - 1) % (len(OBJECTS) - 1) + 1, 0)
    painted = paint(frame, kinds, colors, opacity=OPACITY)
    return np.where(((mask > 0) & (mask != 255))[..., None], painted, frame)


def strips(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], path: str | os.PathLike, *, title: str) -> Path:
    """Draws rows of frames with their masks.

    Args:
      rows: a line of text, frames uint8 `(frames, height, width, 3)` and masks `(frames, height, width)`.
      path: the PNG to write.
    """
    pictures = [[overlay(*pair) for pair in zip(frames, masks, strict=True)] for _, frames, masks in rows]
    figure, _ = page(pictures, title=title, names=[text for text, _, _ in rows])
    return save(figure, path)


def gif(frames: np.ndarray, masks: Sequence[np.ndarray], path: str | os.PathLike) -> Path:
    """Writes a video with its masks as an endless GIF; several masks, such as truth and prediction, side by side.

    Args:
      frames: uint8 `(frames, height, width, 3)`.
      masks: each `(frames, height, width)`.
    """
    gap = np.full((frames.shape[1], GAP, 3), 255, np.uint8)
    images = []
    for number, frame in enumerate(frames):
        parts = [part for mask in masks for part in (overlay(frame, mask[number]), gap)][:-1]
        image = Image.fromarray(np.concatenate(parts, axis=1))
        width = round(image.width * GIF_HEIGHT / image.height)
        images.append(np.asarray(image.resize((width, GIF_HEIGHT))))
    return film.gif(images, path, per_second=FRAMES_PER_SECOND)
