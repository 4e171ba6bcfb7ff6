"""Unsupervised object discovery: TokenCut, arXiv 2202.11539."""

import argparse
import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from dino_jax.data.objects import Box, ObjectImage, Objects, open_objects
from dino_jax.data.reading import read_ahead
from dino_jax.data.subset import evenly
from dino_jax.evals.discovery import THRESHOLD, Found, corloc, mask_iou, token_cut
from dino_jax.models import Extractor, VisionTransformer
from dino_jax.pictures.boxes import discoveries
from dino_jax.tasks import Result, patches
from dino_jax.tasks.patches import PatchFeatures

PICTURES = 8
ENOUGH = 4  # images; with fewer, masks that one object fills prove nothing


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "batch_stats"],
    meta_fields=["name", "backbone", "mean", "std", "bits"],
)
class KeyExtractor(Extractor):
    """A transformer whose patch features are the keys of its last attention, as TokenCut takes them."""

    def __call__(self, images: Array) -> dict[str, Array]:
        """Returns "patches" `(batch, rows, columns, width)`."""
        return {"patches": self.keys(images)}


@dataclasses.dataclass
class Findings:
    """What was found in every image, and what is there."""

    boxes: list[Box] = dataclasses.field(default_factory=list)
    truth: list[list[Box]] = dataclasses.field(default_factory=list)
    ious: list[float] = dataclasses.field(default_factory=list)
    shown: list[tuple[ObjectImage, Found]] = dataclasses.field(default_factory=list)

    def add(self, example: ObjectImage, found: Found) -> None:
        """Adds what was found in an image."""
        self.boxes.append(found.box(example.image.shape[:2]))
        self.truth.append(example.boxes)
        if example.mask is not None:
            self.ious.append(mask_iou(example.mask, found.mask))

    def scores(self) -> dict[str, float]:
        """Returns "corloc" and, where there are masks, "mask_miou"."""
        masks = {"mask_miou": float(np.mean(self.ious))} if self.ious else {}
        return {"corloc": corloc(self.boxes, self.truth)} | masks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    layouts = "VOC (boxes), DAVIS, <sequence>/{frames,masks}, or images/ and masks/ of one object each, 0 elsewhere: "
    layouts += "a folder, tar or tar.gz"
    patches.add_arguments(parser, data=layouts, size=480)
    patches.add_year(parser)
    text = "cosine above which patches are joined; in transformers, that of their keys in the last attention"
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help=text)


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Finds one object in every image; CorLoc is the share of boxes that overlap a true one by IoU 0.5 or more.

    Raises:
      ValueError: wrong data or settings, or a model without patches.
    """
    patches.check(options)
    if not -1 < options.threshold < 1:
        raise ValueError(f"--threshold {options.threshold:g} must lie between -1 and 1: it is a cosine")
    data = open_objects(options.data, year=options.year)
    indices = evenly(len(data), options.limit)
    middle = _middle(data, indices, options)
    if isinstance(model, Extractor) and isinstance(model.backbone, VisionTransformer):
        model = KeyExtractor(**vars(model))
    found = {f.name: (f.key, _discover(f, data, indices, options)) for f in patches.compared(model, options)}
    _, first = next(iter(found.values()))
    found["always the middle"] = "middle_", middle
    numbers: dict[str, float] = {}
    rows: list[list[str | float]] = [["discovery", "CorLoc", "mask mIoU"]]
    for name, (key, findings) in found.items():
        scores = findings.scores()
        numbers |= {f"discovery/{key}{score}": value for score, value in scores.items()}
        rows.append([name, scores["corloc"], scores.get("mask_miou", "no masks")])
    title = f"Objects found without labels: CorLoc {numbers['discovery/corloc']:.1%}"
    shown = [(e.image, e.boxes, f.box(e.image.shape[:2]), f.mask, f.eigenvector) for e, f in first.shown]
    return Result(numbers, rows, [discoveries(shown, folder / "discovery.png", title=title)])


def _middle(data: Objects, indices: list[int], options: argparse.Namespace) -> Findings:
    """Finds the middle half of width and height in every image, which knows nothing of it.

    As this reads all data, what is wrong with it is said before the work, not after a part of it.
    """
    middle = np.zeros((4, 4), bool)
    middle[1:3, 1:3] = True
    findings, filled = Findings(), 0
    reading = read_ahead(data.__getitem__, indices)
    for example in tqdm(reading, total=len(indices), unit=" images", desc="checking"):
        findings.add(example, Found(middle, middle, middle.astype(float)))
        height, width = example.image.shape[:2]
        filled += example.mask is not None and (0.0, 0.0, float(width), float(height)) in example.boxes
    if 2 * filled > len(indices) >= ENOUGH:
        raise ValueError(
            f"{options.data}: in {filled} of {len(indices)} masks the object reaches all edges of its image: class "
            "masks will not do, a mask must be 0 outside of one object"
        )
    return findings


def _discover(features: PatchFeatures, data: Objects, indices: list[int], options: argparse.Namespace) -> Findings:
    wanted = {indices[place] for place in evenly(len(indices), PICTURES)}
    findings = Findings()
    reading = read_ahead(data.__getitem__, indices, ahead=options.batch_size)
    for start in tqdm(range(0, len(indices), options.batch_size), unit=" batches", desc=features.name):
        part = indices[start : start + options.batch_size]
        examples = [next(reading) for _ in part]
        for index, example, grid in zip(
            part, examples, features.of_sizes([example.image for example in examples], options.size), strict=True
        ):
            found = token_cut(grid, threshold=options.threshold)
            findings.add(example, found)
            if index in wanted:
                findings.shown.append((example, found))
    return findings
