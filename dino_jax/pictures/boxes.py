"""Draws objects that were found: their boxes beside the true ones, and the map they were cut from."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dino_jax.pictures.colors import ORANGE, SKY, heat
from dino_jax.pictures.page import Box, in_rows, outline, page, save, to_width

FOUND, TRUE = ORANGE, SKY
WIDTH = 255  # pixels of an image


def discoveries(
    found: Sequence[tuple[np.ndarray, Sequence[Box], Box, np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    *,
    title: str,
) -> Path:
    """Draws images with the true boxes and the one found, the patches it surrounds, and the eigenvector.

    Args:
      found: image uint8 `(height, width, 3)`, true boxes, the box found, bool patches `(rows, columns)`, eigenvector
        `(rows, columns)`.
      path: the PNG to write.
    """
    panels = []
    for index, (image, true, box, mask, vector) in enumerate(found):
        photo = to_width(image, WIDTH)
        height, width = photo.shape[:2]
        boxed, ratio = photo, width / image.shape[1]
        for (left, top, right, bottom), color in [*((other, TRUE) for other in true), (box, FOUND)]:
            boxed = outline(boxed, (left * ratio, top * ratio, right * ratio, bottom * ratio), color)
        patches = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        kept = np.where(patches[..., None], photo, (photo * 0.25).astype(np.uint8))
        # The mean of the eigenvector has the middle colour.
        mean, reach = float(vector.mean()), float(abs(vector - vector.mean()).max())
        drawn = heat(vector, low=mean - reach, high=mean + reach, height=height, width=width, colors="RdBu_r")
        named = [("boxes", boxed), ("patches of the object", kept), ("second eigenvector", drawn)]
        panels += named if index < 2 else [("", picture) for _, picture in named]
    # Two images to a line: a page of single lines would be tall and narrow.
    pixels = page(in_rows(panels, 6), title=title, legend=[(FOUND, "found"), (TRUE, "true")])
    return save(pixels, path)
