"""Linear depth on frozen patch features: DINOv3, arXiv 2508.10104, section 6.1.2."""

import argparse
import dataclasses
import functools
import math
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from dino_jax.data.depths import Depths, open_depths
from dino_jax.data.reading import read_ahead
from dino_jax.data.subset import evenly
from dino_jax.data.windows import nearest, shorter_side
from dino_jax.evals import patch_head
from dino_jax.evals.depth import METRICS, align, depth_errors, eigen_crop, mean_errors
from dino_jax.evals.segmentation import upsample
from dino_jax.models import Extractor
from dino_jax.pictures.dense import depths as draw_depths
from dino_jax.tasks import Result, head_training, patches, refuse
from dino_jax.tasks.patches import PatchFeatures

BINS = 256
NEAREST = 1e-3
FARTHEST = 10.0  # metres
PICTURES = 6
CHUNK = 16
AVERAGE = "mean of the training maps"

Shown = tuple[np.ndarray, np.ndarray, np.ndarray]
"""An image, its true depth and its predicted depth at the size of the truth."""

# By name: what an image's prediction may be fitted by before it is scored.
ALIGNMENTS = {"": "as predicted", "scaled_": "scale fitted per image", "shifted_": "scale and shift fitted per image"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    layouts = "{train,test}/{images,depth} or NYUv2: a folder, tar, tar.gz, or nyu_depth_v2_labeled.mat"
    patches.add_arguments(parser, data=layouts, size=480)
    parser.add_argument("--split", default="test", help="split on which the head is tested")
    parser.add_argument(
        "--eigen-crop",
        action=argparse.BooleanOptionalAction,
        help="score only the valid part of NYUv2's full frames (default: in NYUv2's own layouts)",
    )
    parser.add_argument(
        "--farthest",
        type=float,
        default=FARTHEST,
        metavar="METRES",
        help="end of the depth bins; anything farther counts as unknown",
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
    if train.relative:
        refuse(options, "farthest", "on relative depth, which ends at 1")
    if train.relative != test.relative:
        raise ValueError(f"{options.data}: one of train and {options.split} has relative depth, the other metres")
    if options.eigen_crop is None:
        options.eigen_crop = test.nyu
    # What is wrong with the data is said before the training, not after it: these read all of it.
    average = _test_average(_average(train, options, size=test[0][1].shape), test, options)
    found, shown = {}, {}
    for features in patches.compared(model, options):
        head = _train(features, train, options)
        errors, shown[features.name] = _test(features, head, test, options)
        found[features.name] = features.key, errors
    found[AVERAGE] = "average_", average
    numbers: dict[str, float] = {}
    rows: list[list[str | float]] = [["depth, Eigen crop" if options.eigen_crop else "depth", *METRICS]]
    for name, (key, errors) in found.items():
        means = mean_errors(errors)
        numbers |= {f"depth/{key}{metric}": value for metric, value in means.items()}
        for alignment in _alignments(test):
            values = {metric: means[alignment + metric] for metric in METRICS}
            texts = [f"{value:.1%}" if metric == "delta1" else f"{value:.3f}" for metric, value in values.items()]
            rows.append([f"{name}, {ALIGNMENTS[alignment]}", *texts])
    picture = _draw(shown, relative=test.relative, numbers=numbers, folder=folder)
    return Result(numbers, rows, [picture])


def _average(data: Within, options: argparse.Namespace, *, size: tuple[int, ...]) -> np.ndarray:
    """Returns the mean of the training maps, float32 `size`: what the place in the frame alone tells.

    Raises:
      ValueError: when no map knows any depth.
    """
    total, count, known = np.zeros(size), np.zeros(size, int), False
    indices = evenly(len(data), options.limit)
    reading = read_ahead(data.__getitem__, indices)
    for _, depth in tqdm(reading, total=len(indices), unit=" images", desc="training maps"):
        known |= bool((depth > 0).any())
        depth = nearest(depth, size)
        total += depth
        count += depth > 0
    if not known:
        raise ValueError(f"{options.data}, split 'train': no depth is known{_reach(data)}")
    return np.maximum(total / np.maximum(count, 1), NEAREST).astype(np.float32)


def _test_average(average: np.ndarray, data: Within, options: argparse.Namespace) -> list[dict[str, float]]:
    """Returns the errors of one map for every image, see `_errors`.

    Raises:
      ValueError: for an image of which no depth is known where it counts.
    """
    errors = []
    indices = evenly(len(data), options.limit)
    reading = read_ahead(data.__getitem__, indices)
    shown = tqdm(reading, total=len(indices), unit=" images", desc=f"{options.split} maps")
    for index, (_, truth) in zip(indices, shown, strict=True):
        if not ((truth > 0) & _valid(truth, options)).any():
            where = "inside the Eigen crop" if options.eigen_crop else "anywhere"
            raise ValueError(f"the depth of {data.name(index)} is not known {where}{_reach(data)}: leave the image out")
        errors.append(_errors(truth, nearest(average, truth.shape), data, options))
    return errors


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


def _test(
    features: PatchFeatures, head: patch_head.Head, data: Within, options: argparse.Namespace
) -> tuple[list[dict[str, float]], list[Shown]]:
    """Returns the errors of every image, see `_errors`, and what is to be shown."""
    indices = evenly(len(data), options.limit)
    wanted = {indices[place] for place in evenly(len(indices), PICTURES)}
    errors, shown = [], []
    reading = read_ahead(data.__getitem__, indices, ahead=CHUNK)
    for start in range(0, len(indices), CHUNK):
        part = indices[start : start + CHUNK]
        pairs = [next(reading) for _ in part]
        grids = features.of_sizes([image for image, _ in pairs], options.size)
        for index, (image, truth), grid in zip(part, pairs, grids, strict=True):
            predicted = np.asarray(_depth_map(head, grid, size=truth.shape, high=data.high))
            errors.append(_errors(truth, predicted, data, options))
            if index in wanted:
                shown.append((image, truth, predicted))
    return errors, shown


@functools.partial(jax.jit, static_argnames=("size", "high"))
def _depth_map(head: patch_head.Head, grid: jax.Array, *, size: tuple[int, int], high: float) -> jax.Array:
    depth = patch_head.depth_from_bins(patch_head.apply_head(head, grid), low=NEAREST, high=high)
    return upsample(depth[None, ..., None], size)[0, ..., 0]


def _alignments(data: Within) -> list[str]:
    return list(ALIGNMENTS) if data.relative else [""]


def _errors(truth: np.ndarray, predicted: np.ndarray, data: Within, options: argparse.Namespace) -> dict[str, float]:
    """Returns the errors of an image by the names of alignment and metric."""
    valid = _valid(truth, options)
    errors: dict[str, float] = {}
    for alignment in _alignments(data):
        fitted = predicted
        if alignment:
            fitted = align(truth, predicted, shift=alignment == "shifted_", valid=valid, floor=NEAREST)
        found = depth_errors(truth, fitted, valid=valid)
        errors |= {f"{alignment}{metric}": value for metric, value in found.items()}
    return errors


def _draw(found: dict[str, list[Shown]], *, relative: bool, numbers: dict[str, float], folder: Path) -> Path:
    """Draws images with their truth and predictions; relative ones with their scale fitted, as it is unknown."""
    images, truths, _ = zip(*next(iter(found.values())), strict=True)
    maps = {"truth": list(truths)}
    for name, shown in found.items():
        maps[name] = [align(truth, predicted, shift=False) if relative else predicted for _, truth, predicted in shown]
    words = "relative depth, scale fitted per image" if relative else "depth in metres"
    title = f"Linear {words}: abs-rel {numbers['depth/scaled_abs_rel' if relative else 'depth/abs_rel']:.3f}"
    return draw_depths(images, maps, folder / "depth.png", title=title)
