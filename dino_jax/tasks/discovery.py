"""Unsupervised object discovery: TokenCut, arXiv 2202.11539."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from dino_jax.data.objects import Box, ObjectImage, Objects, open_objects
from dino_jax.data.subset import evenly
from dino_jax.evals.discovery import THRESHOLD, Found, corloc, mask_iou, token_cut
from dino_jax.models import Extractor
from dino_jax.pictures.boxes import discoveries
from dino_jax.tasks import Result, patches
from dino_jax.tasks.patches import PatchFeatures

PICTURES = 8


@dataclasses.dataclass
class Findings:
    """What was found in every image, and what is there."""

    boxes: list[Box] = dataclasses.field(default_factory=list)
    truth: list[list[Box]] = dataclasses.field(default_factory=list)
    ious: list[float] = dataclasses.field(default_factory=list)
    shown: list[tuple[ObjectImage, Found]] = dataclasses.field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    layouts = "VOC (boxes), DAVIS or <sequence>/{frames,masks}, or images and masks of one object each, 0 elsewhere: "
    layouts += "a folder, tar or tar.gz"
    patches.add_arguments(parser, data=layouts, size=480)
    parser.add_argument("--year", type=int, choices=[2016, 2017], default=2017, help="of DAVIS: one object, or several")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="cosine above which patches are joined")


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Finds one object in every image; CorLoc is the share of boxes that overlap a true one by IoU 0.5 or more.

    Raises:
      ValueError: wrong data, or a model without patches.
    """
    patches.check(options)
    data = open_objects(options.data, year=options.year)
    indices = evenly(len(data), options.limit)
    _check(data, indices, options)
    found = {f.name: (f.key, _discover(f, data, indices, options)) for f in patches.compared(model, options)}
    numbers: dict[str, float] = {}
    rows: list[list[str | float]] = [["discovery", "CorLoc", "mask mIoU"]]
    for name, (key, findings) in found.items():
        scores = _scores(findings.boxes, findings.truth, findings.ious)
        numbers |= {f"discovery/{key}{score}": value for score, value in scores.items()}
        rows.append([name, scores["corloc"], scores.get("mask_miou", "no masks")])
    _, first = next(iter(found.values()))
    rows += _baseline(data, indices, first.truth, numbers)
    title = f"Objects found without labels: CorLoc {numbers['discovery/corloc']:.1%}"
    shown = [(e.image, e.boxes, f.box(e.image.shape[:2]), f.mask, f.eigenvector) for e, f in first.shown]
    return Result(numbers, rows, [discoveries(shown, folder / "discovery.png", title=title)])


def _check(data: Objects, indices: list[int], options: argparse.Namespace) -> None:
    """Reads all data: what is wrong with it is said before the work, not after a part of it."""
    filled = 0
    for index in indices:
        example = data[index]
        height, width = example.image.shape[:2]
        filled += example.mask is not None and (0.0, 0.0, float(width), float(height)) in example.boxes
    if 2 * filled > len(indices):
        raise ValueError(
            f"{options.data}: in {filled} of {len(indices)} masks the object reaches all edges of its image: masks of "
            "classes will not do, a mask must be 0 outside of one object"
        )


def _discover(features: PatchFeatures, data: Objects, indices: list[int], options: argparse.Namespace) -> Findings:
    wanted = {indices[place] for place in evenly(len(indices), PICTURES)}
    findings = Findings()
    for start in range(0, len(indices), options.batch_size):
        part = indices[start : start + options.batch_size]
        examples = [data[index] for index in part]
        for index, example, grid in zip(
            part, examples, features.of_sizes([example.image for example in examples], options.size), strict=True
        ):
            found = token_cut(grid, threshold=options.threshold)
            findings.boxes.append(found.box(example.image.shape[:2]))
            findings.truth.append(example.boxes)
            if example.mask is not None:
                findings.ious.append(mask_iou(example.mask, found.mask))
            if index in wanted:
                findings.shown.append((example, found))
    return findings


def _scores(boxes: list[Box], truth: list[list[Box]], ious: list[float]) -> dict[str, float]:
    scores = {"corloc": corloc(boxes, truth)}
    return scores | ({"mask_miou": float(np.mean(ious))} if ious else {})


def _baseline(
    data: Objects, indices: list[int], truth: list[list[Box]], numbers: dict[str, float]
) -> list[list[str | float]]:
    """Scores the middle half of the width and height, which knows nothing of the image, and adds its numbers."""
    boxes, ious = [], []
    for index in indices:
        example = data[index]
        height, width = example.image.shape[:2]
        boxes.append((width / 4, height / 4, 3 * width / 4, 3 * height / 4))
        if example.mask is not None:
            middle = np.zeros((4, 4), bool)
            middle[1:3, 1:3] = True
            ious.append(mask_iou(example.mask, middle))
    scores = _scores(boxes, truth, ious)
    numbers.update({f"discovery/middle_{score}": value for score, value in scores.items()})
    return [["always the middle", scores["corloc"], scores.get("mask_miou", "no masks")]]
