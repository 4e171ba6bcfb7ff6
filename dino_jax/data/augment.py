"""Turns a host batch of uint8 crops into the float crops of a step: the published distortion of each kind of crop."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import Array
from jax.typing import DTypeLike

from dino_jax.data import photometry

# DINO, section 3.1, and BYOL's tables, kept by DINOv2 and DINOv3: jitter with p 0.8, grey with p 0.2.
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
PROBABILITIES = {"jitter_probability": 0.8, "gray_probability": 0.2}
# Blur always on global crop 1 and rarely on 2, solarisation only on 2.
GLOBAL: dict[str, Any] = {"blur": (1.0, 0.1), "solarize": (0.0, 0.2)}
LOCAL_BLUR = 0.5


def augment(
    key: Array,
    number: Array,
    batch: Mapping[str, Array],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> dict[str, Array]:
    """Distorts and normalises the student's and teacher's crops; the Gram teacher's are only normalised.

    Args:
      key: source of every random choice, with the batch's `number`.
      batch: as `pipeline.train_batches` gives it; entries that are not crops are passed on.
      mean, std: per channel, of values in [0, 1].
      dtype: of the crops that are returned; they are distorted in float32.
    """
    global_key, local_key = jax.random.split(jax.random.fold_in(key, number))
    views = batch["local_crops"].shape[1]
    statistics: dict[str, Any] = {"mean": mean, "std": std}
    shared: dict[str, Any] = JITTER | PROBABILITIES | statistics
    out = dict(batch)
    out["global_crops"] = photometry.distort(global_key, batch["global_crops"], **GLOBAL, **shared)
    out["local_crops"] = photometry.distort(
        local_key, batch["local_crops"], blur=(LOCAL_BLUR,) * views, solarize=(0.0,) * views, **shared
    )
    if "gram_crops" in batch:
        out["gram_crops"] = photometry.normalize(batch["gram_crops"], **statistics)
    return {name: x.astype(dtype) if name.endswith("crops") else x for name, x in out.items()}
