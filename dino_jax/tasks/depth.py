"""Linear depth on frozen patch features: DINOv3, arXiv 2508.10104, section 6.1.2."""

import argparse
import dataclasses
import functools
import math
from pathlib import Path

import jax
import numpy as np

from dino_jax.data.depths import Depths, open_depths
from dino_jax.data.subset import evenly
from dino_jax.evals import patch_head
from dino_jax.evals.depth import METRICS, align, depth_errors, eigen_crop, mean_errors
from dino_jax.evals.segmentation import upsample
from dino_jax.evals.windows import resize, shorter_side
from dino_jax.models import Extractor
from dino_jax.pictures.dense import depths as draw_depths
from dino_jax.tasks import Result, head_training, patches
from dino_jax.tasks.patches import PatchFeatures

BINS = 256
NEAREST = 1e-3
FARTHEST = 10.0  # metres
PICTURES = 6
CHUNK = 16
AVERAGE = "mean of the training maps"

# By name: what an image's prediction may be fitted by before it is scored.
ALIGNMENTS = {"": "as predicted", "scaled_": "scale fitted per image", "shifted_": "scale and shift fitted per image"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    layouts = "{train,test}/{images,depth} or NYUv2: a folder, tar, tar.gz, or nyu_depth_v2_labeled.mat"
    patches.add_arguments(parser, data=layouts, size=480)
    parser.add_argument("--split", default="test", help="where the head is tested")
    parser.add_argument(
        "--eigen-crop",
        action=argparse.BooleanOptionalAction,
        help="score the valid part of NYUv2's full frames only (default: in NYUv2's own layouts)",
    )
    parser.add_argument(
        "--farthest",
        type=float,
        default=FARTHEST,
        metavar="METRES",
        help="where the bins end; what is beyond is unknown",
    )
    head_training.add_arguments(parser, steps=38_400, learning_rate=3e-4)


@dataclasses.dataclass(frozen=True)
class Within:
    """Depth maps in which what lies beyond the bins is unknown, see `data.depths.Depths`.

    Attributes:
      farthest: metres.
    """

    data: Depths
    farthest: float

    @property
    def relative(self) -> bool:
        return self.data.relative

    @property
    def nyu(self) -> bool:
        return self.data.nyu

    @property
    def high(self) -> float:
        """Where the bins end: in metres, or as a share of the unknown largest depth."""
        return 1.0 if self.relative else self.farthest

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return self.data.name(index)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, depth = self.data[index]
        return image, np.where(depth > self.high, np.float32(0), depth)


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Trains a linear head of depth bins on patches and measures its errors on the test images.

    Relative depth is also scored after fitting each image's scale, and scale and shift, to the truth.

    Raises:
      ValueError: wrong data, or a model without patches.
    """
    patches.check(options, "steps")
    if not NEAREST < options.farthest < math.inf:
        raise ValueError(f"--farthest {options.farthest:g} must be a number above {NEAREST:g} metres")
    train, test = (Within(open_depths(options.data, split), options.farthest) for split in ("train", options.split))
    if train.relative != test.relative:
        raise ValueError(f"{options.data}: one of train and {options.split} has relative depth, the other metres")
    if options.eigen_crop is None:
        options.eigen_crop = test.nyu
    # What is wrong with the data is said before the training, not after it.
    known = [(train[index][1] > 0).any() for index in evenly(len(train), options.limit)]
    if not any(known):
        raise ValueError(f"{options.data}, split 'train': no depth is known{_reach(train)}")
    for index in evenly(len(test), options.limit):
        _check_known(test, index, options)
    found, keys = {}, {}
    for features in patches.compared(model, options):
        found[features.name] = _predict(features, _train(features, train, options), test, options)
        keys[features.name] = features.key
    images, truths, _ = next(iter(found.values()))
    average = _average(train, truths, options)
    keys[AVERAGE] = "average_"
    numbers: dict[str, float] = {}
    rows: list[list[str | float]] = [["depth, Eigen crop" if options.eigen_crop else "depth", *METRICS]]
    for name, (_, _, predictions) in [*found.items(), (AVERAGE, (images, truths, average))]:
        for alignment, words in ALIGNMENTS.items() if test.relative else [("", ALIGNMENTS[""])]:
            errors = _errors(truths, predictions, alignment, options)
            numbers |= {f"depth/{keys[name]}{alignment}{metric}": value for metric, value in errors.items()}
            shown = [f"{value:.1%}" if metric == "delta1" else f"{value:.3f}" for metric, value in errors.items()]
            rows.append([f"{name}, {words}", *shown])
    picture = _draw(found, relative=test.relative, numbers=numbers, folder=folder)
    return Result(numbers, rows, [picture])


def _check_known(data: Within, index: int, options: argparse.Namespace) -> None:
    truth = data[index][1]
    if not ((truth > 0) & _valid(truth, options)).any():
        where = "inside the Eigen crop" if options.eigen_crop else "anywhere"
        raise ValueError(f"the depth of {data.name(index)} is not known {where}{_reach(data)}: leave the image out")


def _reach(data: Within) -> str:
    """Says in words which depths count."""
    return "" if data.relative else f" up to {data.high:g} metres (--farthest)"


def _valid(truth: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Returns the pixels that count, bool in the shape of the truth."""
    return eigen_crop(truth.shape) if options.eigen_crop else np.ones(truth.shape, bool)


def _train(features: PatchFeatures, data: Within, options: argparse.Namespace) -> patch_head.Head:
    patch = features.patch_size
    height, width = (max(patch, s // patch * patch) for s in shorter_side(data[0][0].shape[:2], options.size))
    crops = head_training.Crops(size=(height, width), side=options.size, scale=(1.0, 1.0), fill=0.0)
    loss = functools.partial(patch_head.scale_invariant_log_loss, low=NEAREST, high=data.high)
    indices = evenly(len(data), options.limit)
    return head_training.train_head(features, data, indices, crops=crops, outputs=BINS, loss=loss, options=options)


def _predict(
    features: PatchFeatures, head: patch_head.Head, data: Within, options: argparse.Namespace
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Returns images, true depths and predicted depths at the size of the truth."""
    images, truths, predictions = [], [], []
    indices = evenly(len(data), options.limit)
    for start in range(0, len(indices), CHUNK):
        pairs = [data[index] for index in indices[start : start + CHUNK]]
        grids = features.of_sizes([image for image, _ in pairs], options.size)
        for (image, depth), grid in zip(pairs, grids, strict=True):
            found = _depth_map(head, grid, size=depth.shape, high=data.high)
            images.append(image)
            truths.append(depth)
            predictions.append(np.asarray(found))
    return images, truths, predictions


@functools.partial(jax.jit, static_argnames=("size", "high"))
def _depth_map(head: patch_head.Head, grid: jax.Array, *, size: tuple[int, int], high: float) -> jax.Array:
    depth = patch_head.depth_from_bins(patch_head.apply_head(head, grid), low=NEAREST, high=high)
    return upsample(depth[None, ..., None], size)[0, ..., 0]


def _average(train: Depths, truths: list[np.ndarray], options: argparse.Namespace) -> list[np.ndarray]:
    """Predicts the mean of the training maps for every image: what the place in the frame alone tells."""
    size = truths[0].shape
    maps = [resize(train[index][1], size, kind="labels") for index in evenly(len(train), options.limit)]
    known = np.sum([depth > 0 for depth in maps], axis=0)
    mean = np.maximum(np.sum(maps, axis=0) / np.maximum(known, 1), NEAREST).astype(np.float32)
    return [resize(mean, truth.shape, kind="labels") for truth in truths]


def _errors(
    truths: list[np.ndarray], predictions: list[np.ndarray], alignment: str, options: argparse.Namespace
) -> dict[str, float]:
    """Averages the errors over the images after fitting each prediction."""
    errors = []
    for truth, predicted in zip(truths, predictions, strict=True):
        valid = _valid(truth, options)
        if alignment:
            predicted = align(truth, predicted, shift=alignment == "shifted_", valid=valid, floor=NEAREST)
        errors.append(depth_errors(truth, predicted, valid=valid))
    return mean_errors(errors)


def _draw(found: dict, *, relative: bool, numbers: dict[str, float], folder: Path) -> Path:
    """Draws some images with their truth and predictions; relative ones with their scale fitted, as it is unknown."""
    images, truths, _ = next(iter(found.values()))
    chosen = evenly(len(images), PICTURES)
    maps = {"truth": [truths[index] for index in chosen]}
    for name, (_, _, predictions) in found.items():
        maps[name] = [
            align(truths[index], predictions[index], shift=False) if relative else predictions[index]
            for index in chosen
        ]
    words = "relative depth, scale fitted per image" if relative else "depth in metres"
    title = f"Linear {words}: abs-rel {numbers['depth/scaled_abs_rel' if relative else 'depth/abs_rel']:.3f}"
    return draw_depths([images[index] for index in chosen], maps, folder / "depth.png", title=title)
