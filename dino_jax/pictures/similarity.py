"""A page on which a click shows where else the features are alike; one file, which needs no network."""

import base64
import io
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino_jax.data.whole import write_whole
from dino_jax.evals.features import check_finite
from dino_jax.pictures.colors import colored

MOST_DIMENSIONS = 128
SHADES = 32


def similarity_page(
    images: Sequence[np.ndarray],
    features: Sequence[np.ndarray],
    path: str | os.PathLike,
    *,
    names: Sequence[str],
    title: str,
) -> Path:
    """Writes the page: the images, their features in 8 bits, and the script that compares them.

    Cosines survive the compression: normalised features are turned onto their leading directions, at most
    `MOST_DIMENSIONS` of them, and rounded to whole numbers.

    Args:
      images: uint8 `(height, width, 3)` each.
      features: `(rows, columns, dim)` of each image.
      names: of the images.

    Raises:
      ValueError: if there are no images, shapes disagree or a feature is not finite.
    """
    if not len(images) or not len(images) == len(features) == len(names):
        raise ValueError(f"similarity: {len(images)} images, {len(features)} features and {len(names)} names")
    for grid in features:
        check_finite(grid, "similarity: features")
    whole = compressed(features)
    data = {
        "title": title,
        "dim": whole[0].shape[-1],
        "colors": colored(np.linspace(0, 1, SHADES)).tolist(),
        "images": [_entry(image, grid, name) for image, grid, name in zip(images, whole, names, strict=True)],
    }
    template = resources.files("dino_jax.pictures").joinpath("similarity.html").read_text()
    # In a script element, "</" could end it.
    page = template.replace("__DATA__", json.dumps(data, separators=(",", ":")).replace("</", "<\\/"))
    path = Path(path)
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def compressed(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns int8 features `(rows, columns, at most MOST_DIMENSIONS)` whose cosines are nearly those of the given."""
    unit = [grid / np.maximum(np.linalg.norm(grid, axis=-1, keepdims=True), 1e-12) for grid in features]
    patches = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in unit]).astype(np.float64)
    _, directions = np.linalg.eigh(patches.T @ patches)
    turned = [grid @ directions[:, ::-1][:, :MOST_DIMENSIONS] for grid in unit]
    largest = [np.maximum(np.abs(grid).max(axis=-1, keepdims=True), 1e-12) for grid in turned]
    return [np.rint(grid / limit * 127).astype(np.int8) for grid, limit in zip(turned, largest, strict=True)]


def _entry(image: np.ndarray, whole: np.ndarray, name: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    return {
        "name": name,
        "width": image.shape[1],
        "height": image.shape[0],
        "rows": whole.shape[0],
        "columns": whole.shape[1],
        "photo": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
        "features": base64.b64encode(whole.tobytes()).decode(),
    }
