"""The pictures of a finished run: what its features look like on a few images, and the curves of its numbers."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import pictures, sharding
from dino_jax.data.photometry import normalize
from dino_jax.data.pipeline import eval_batches
from dino_jax.data.sources import Source
from dino_jax.data.subset import Chosen, middles
from dino_jax.models import last_attention
from dino_jax.phases import in_order
from dino_jax.state import Networks, Params, TrainState

SHOWN = 6  # images in a picture
FINEST_GRID = 24  # patches per side in pictures of small images, which are enlarged to it
Patches = Callable[[Params, np.ndarray], np.ndarray]


def draw(
    config: ConfigDict,
    networks: Networks,
    mesh: Mesh,
    patches: Patches,
    source: Source,
    state: TrainState,
    records: Sequence[dict[str, Any]],
    final: dict[str, Any],
    folder: Path,
) -> list[Path]:
    """Draws principal components, attention, cosine maps and curves; every process computes, the first one draws.

    Args:
      patches: maps backbone parameters and uint8 images `(images, side, side, 3)` to `(images, rows, columns, dim)`.
      source: images to choose from.
      records: of metrics.jsonl.
      final: step and quality at the end of the run, as in a record.
      folder: receives the files.

    Returns:
      The files, none in the other processes.
    """
    patch = networks.backbone.patch_size
    side = max(FINEST_GRID, -(-config.eval.size // patch)) * patch
    some = Chosen(source, middles(len(source), SHOWN))
    batch = next(eval_batches(some, size=side, batch_size=len(some)))
    images, labels = batch["images"][batch["valid"]], batch["labels"][batch["valid"]]
    teacher = state.teacher["backbone"]
    attention = cls_attention(config, networks, mesh, teacher, images)
    attention = attention.reshape(*attention.shape[:2], side // patch, side // patch)
    compared = {"student": patches(state.student["backbone"], images), "EMA teacher": patches(teacher, images)}
    if state.gram_teacher is not None:
        compared["Gram teacher"] = patches(state.gram_teacher, images)
    if jax.process_index() != 0:
        return []
    folder.mkdir(exist_ok=True)
    names = [source.class_names[label] if label >= 0 else "" for label in labels] if source.class_names else None
    second = "EMA teacher" if state.gram_teacher is None else "Gram teacher"
    paths = [
        pictures.pca(images, compared["EMA teacher"], folder / "pca.png", names=names),
        pictures.attention(images, attention, folder / "attention.png", names=names),
        pictures.cosine_maps(
            images, {name: compared[name] for name in ("student", second)}, folder / "cosine.png", names=names
        ),
    ]
    if records:
        boundaries = [(phase.name, phase.first) for phase in in_order(config)]
        paths.append(pictures.curves(records, folder / "curves.png", phases=boundaries))
        if pictures.can_be_drawn([*records, final]):
            name = folder / "global_against_dense.png"
            paths.append(pictures.global_against_dense([*records, final], name, phases=boundaries))
    return paths


def cls_attention(config: ConfigDict, networks: Networks, mesh: Mesh, params: Params, images: np.ndarray) -> np.ndarray:
    """Returns the last block's attention of CLS to the patches, float32 `(images, heads, patches)`."""
    backbone = networks.backbone

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def weights(params: Params, images: Array) -> Array:
        normalized = normalize(images, config.data.mean, config.data.std)
        return last_attention(backbone, params, normalized, queries=1)[:, :, 0, 1 + backbone.registers :]

    return np.asarray(weights(params, images), np.float32)
