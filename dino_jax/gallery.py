"""The pictures of a finished run: what its features look like on a few images, and the curves of its numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dino_jax import pictures, sharding, views
from dino_jax.data.pipeline import eval_batches
from dino_jax.data.sources import Source
from dino_jax.data.subset import Chosen, middles
from dino_jax.models import Extractor, VisionTransformer
from dino_jax.phases import Phase
from dino_jax.pictures.colors import visible

SHOWN = 6  # images in a picture
FINEST_GRID = 24  # patches per side in pictures of small images, which are enlarged to it


def draw_features(
    models: Mapping[str, Extractor], source: Source, mesh: Mesh, folder: Path, *, size: int
) -> list[Path]:
    """Draws principal components, attention and cosine maps; every process computes, the first one draws.

    Args:
      models: by name, of one architecture: "student", "EMA teacher" and, if there is one, "Gram teacher". A network
        without attention has no picture of it.
      source: images to choose from.
      folder: receives the files.
      size: side of the images; they are enlarged to have at least `FINEST_GRID` patches a side.

    Returns:
      The files, none in the other processes.
    """
    teacher = models["EMA teacher"]
    side = max(FINEST_GRID, -(-size // teacher.patch_size)) * teacher.patch_size
    some = Chosen(source, middles(len(source), SHOWN))
    batch = next(eval_batches(some, size=side, batch_size=len(some)))
    images, labels = batch["images"][batch["valid"]], batch["labels"][batch["valid"]]
    everywhere = sharding.replicated(mesh)
    patches = jax.jit(views.patches, out_shardings=everywhere)
    grids = {name: np.asarray(patches(model, images), np.float32) for name, model in models.items()}
    grid = grids["EMA teacher"]
    weights = None
    if isinstance(teacher.backbone, VisionTransformer):
        row = np.asarray(jax.jit(views.cls_row, out_shardings=everywhere)(teacher, images), np.float32)
        weights = row[..., -grid.shape[1] * grid.shape[2] :].reshape(*row.shape[:2], *grid.shape[1:3])
    if jax.process_index() != 0:
        return []
    images = np.stack([visible(image) for image in images])
    names = [source.class_names[label] if label >= 0 else "" for label in labels] if source.class_names else None
    compared = {name: grids[name] for name in ("student", list(grids)[-1])}
    drawn = [pictures.pca(images, grid, folder / "pca.png", names=names)]
    if weights is not None:
        drawn.append(pictures.attention(images, weights, folder / "attention.png", names=names))
    return [*drawn, pictures.cosine_maps(images, compared, folder / "cosine.png", names=names)]


def draw_curves(
    phases: Sequence[Phase], records: Sequence[dict[str, Any]], final: dict[str, Any], folder: Path
) -> list[Path]:
    """Draws what was logged, and, if both were measured, global against dense quality; returns the files.

    Args:
      phases: of the run.
      records: of metrics.jsonl.
      final: step and quality at the end of the run, as in a record.
      folder: receives the files.
    """
    if not records:
        return []
    boundaries = [(phase.name, phase.first) for phase in phases]
    drawn = [pictures.curves(records, folder / "curves.png", phases=boundaries)]
    if pictures.can_be_drawn([*records, final]):
        path = folder / "global_against_dense.png"
        drawn.append(pictures.global_against_dense([*records, final], path, phases=boundaries))
    return drawn
