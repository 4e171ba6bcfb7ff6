"""Quality of features without labels: rank, alignment, uniformity, and how patches relate to CLS and to each other."""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dino_jax.data.deep import decoder
from dino_jax.data.probe_views import Augmented
from dino_jax.data.sources import open_path
from dino_jax.data.subset import Chosen, part_of
from dino_jax.evals import quality
from dino_jax.extraction import Features
from dino_jax.models import Extractor
from dino_jax.pictures.charts import spread
from dino_jax.tasks import Result
from dino_jax.tasks.images import add_extraction_arguments, extracted
from dino_jax.views import photographs

BATCH = 64  # images whose patches are compared at once
PATCHES = 4096  # sampled for the rank of patch features

MEANINGS = {
    "rankme_cls": "effective rank of CLS (RankMe, {cls} at most)",
    "rankme_patches": "effective rank of patches (RankMe, {patches} at most)",
    "alignment": "alignment of two views (0 best, 2 unrelated)",
    "uniformity": "uniformity of CLS (lower is better, 0 collapsed)",
    "cls_cosine": "mean cosine of CLS between images",
    "patch_cosine": "mean cosine of patches within an image",
    "neighbour_cosine": "cosine of neighbouring patches",
    "local_consistency": "the same above the mean within the image",
    "cls_patch_cosine": "cosine of patches to their CLS",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument("--data", required=True, metavar="PATH", help="images; labels are not used")
    parser.add_argument("--limit", type=int, default=1024, metavar="N", help="use at most N images, spread evenly")
    parser.add_argument("--seed", type=int, default=0, help="random seed for the two views")
    add_extraction_arguments(parser)


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Measures the features of images and of two random views of each.

    Raises:
      ValueError: wrong data or settings, or fewer than two images.
    """
    decode = decoder(model.backbone.in_channels, model.bits)
    source = open_path(options.data, decode=decode)
    source = part_of(Chosen(source, photographs(source)), options.limit)
    if len(source) < 2:
        raise ValueError(f"{options.data}: {len(source)} image is too few to compare; give at least two (see --limit)")
    if options.size < 2 * model.patch_size:
        raise ValueError(
            f"--size {options.size} does not hold two patches to compare: give {2 * model.patch_size} or more, as a "
            f"patch of {model.name} has {model.patch_size} px"
        )
    plain = extracted(model, source, options, outputs=("cls", "patches"))
    views = (Augmented(source, options.size, options.seed, view) for view in range(2))
    first, second = (extracted(model, view, options) for view in views)
    sample = _some_patches(plain["patches"], options.seed)
    spectra = {"CLS": np.asarray(quality.spectrum(plain["cls"])), "patches": np.asarray(quality.spectrum(sample))}
    found = {
        "rankme_cls": float(quality.effective_rank(spectra["CLS"])),
        "rankme_patches": float(quality.effective_rank(spectra["patches"])),
        "alignment": float(quality.alignment(first["cls"], second["cls"])),
        "uniformity": quality.uniformity(plain["cls"]),
        "cls_cosine": float(quality.mean_pairwise_cosine(plain["cls"])),
        **_of_patches(plain),
    }
    rows: list[list[str | float]] = [["measure", "value"]]
    most = {"cls": min(plain["cls"].shape), "patches": min(sample.shape)}
    rows += [[text.format(**most), f"{found[name]:.3f}"] for name, text in MEANINGS.items()]
    half = len(plain["cls"]) // 2
    cosines = {
        "CLS of two views": np.asarray(quality.cosines(first["cls"], second["cls"])),
        "CLS of two images": np.asarray(quality.cosines(plain["cls"][:half], plain["cls"][half : 2 * half])),
    }
    picture = spread(spectra, cosines, folder / "spread.png", title=f"Features of {model.name}, {len(source)} images")
    return Result({f"quality/{name}": value for name, value in found.items()}, rows, [picture])


def _of_patches(features: Features) -> dict[str, float]:
    """Averages the measures of patches over batches of images."""
    sums = dict.fromkeys(("patch_cosine", "neighbour_cosine", "cls_patch_cosine"), 0.0)
    count = len(features["cls"])
    for start in range(0, count, BATCH):
        cls, grid = (jnp.asarray(features[name][start : start + BATCH]) for name in ("cls", "patches"))
        patches = grid.reshape(len(grid), -1, grid.shape[-1])
        sums["patch_cosine"] += len(grid) * float(quality.mean_pairwise_cosine(patches))
        sums["neighbour_cosine"] += len(grid) * float(quality.neighbour_cosine(grid))
        sums["cls_patch_cosine"] += len(grid) * float(quality.cls_patch_cosine(cls, patches))
    means = {name: value / count for name, value in sums.items()}
    return means | {"local_consistency": means["neighbour_cosine"] - means["patch_cosine"]}


def _some_patches(patches: np.ndarray, seed: int) -> np.ndarray:
    """Draws patches of all images, `(patches, dim)`."""
    flat = patches.reshape(-1, patches.shape[-1])
    chosen = np.random.default_rng(seed).choice(len(flat), min(PATCHES, len(flat)), replace=False)
    return flat[np.sort(chosen)]
