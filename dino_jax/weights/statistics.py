"""Mean and standard deviation of each channel of the images that weights were trained on, for images in [0, 1]."""

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_jax.models.extractor import IMAGENET_MEAN, IMAGENET_STD

Numbers = tuple[float, ...]

# The satellite weights of DINOv3 have their own channel statistics (arXiv 2508.10104, section 8).
SATELLITE = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}


def published(path: Path) -> Mapping[str, Numbers]:
    """Returns "mean" and "std" of weights at a path where no file tells them: the satellite weights' by their name.

    That is the name of the file or, where it does not say, of a model in the cache of Hugging Face, or of the folder.
    """
    path = path.absolute()
    cached = [part for part in path.parts if part.startswith("models--")]
    for name in (path.name, *cached, path.parent.name):
        if re.search(r"sat-?493m", name.lower()):
            return SATELLITE
        if re.search(r"lvd-?\d+m", name.lower()):  # the photographs of DINOv2 and DINOv3
            break
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def spread(statistics: Numbers, channels: int) -> Numbers:
    """Repeats channel statistics in turn, as the weights are; one channel gets their mean."""
    if channels == 1:
        return (sum(statistics) / len(statistics),)
    return tuple(statistics[i % len(statistics)] for i in range(channels))


def problem(name: str, values: Any, channels: int) -> str | None:
    """Says what is wrong with "mean" or "std", or None."""
    if not isinstance(values, Sequence) or not all(_is_finite(x) for x in values):
        return f"{name} = {values!r} is not a list of finite numbers"
    if len(values) != channels:
        return f"{name} has {len(values)} numbers for {channels} channels"
    if name == "std" and min(values) <= 0:
        return f"std = {tuple(values)} must be positive"
    return None


def of_file(file: Path, name: str, values: Any, channels: int) -> Numbers:
    """Returns "mean" or "std" as a file says it; what is for three channels is spread over others.

    Raises:
      ValueError: when these are not such numbers.
    """
    there = 3 if isinstance(values, Sequence) and len(values) == 3 else channels
    wrong = problem(name, values, there)
    if wrong:
        raise ValueError(f"{file} is damaged: {wrong}; fetch it again, or mend it")
    return tuple(values) if there == channels else spread(tuple(values), channels)


def _is_finite(x: Any) -> bool:
    return isinstance(x, numbers.Real) and math.isfinite(x)
