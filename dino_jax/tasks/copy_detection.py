"""Copy detection on Copydays: DINO, arXiv 2104.14294, section 4.2.1."""

import argparse
from pathlib import Path

import numpy as np

from dino_jax.data.copies import Copies, open_copies
from dino_jax.data.sources import Source, open_path
from dino_jax.data.subset import part_of
from dino_jax.evals.retrieval import copy_detection, rankings, whiten, whitening
from dino_jax.models import Extractor
from dino_jax.pictures.page import framed, page, save
from dino_jax.tasks import Result, refuse
from dino_jax.tasks.images import add_extraction_arguments, check_complete, extracted, picture_of

QUERIES, FOUND = 8, 7  # shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument("--data", required=True, metavar="PATH", help="folder or tar with original/ and strong/")
    parser.add_argument("--subset", default="strong", help="folder of the copies: strong, jpegqual/75, crops/50, ...")
    parser.add_argument("--distractors", metavar="PATH", help="unrelated images added to the database (papers: 10,000)")
    parser.add_argument(
        "--whitening", metavar="PATH", help="images from which to learn a PCA whitening (papers: 20,000)"
    )
    parser.add_argument(
        "--limit", type=int, default=20000, help="maximum number of distractors, and of images for the whitening"
    )
    add_extraction_arguments(parser, size=320)


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Finds the photograph of each copy by CLS and pooled patches.

    Raises:
      ValueError: wrong data or settings.
    """
    if not (options.distractors or options.whitening):
        refuse(options, "limit", "without --distractors or --whitening")
    if options.limit < 1:
        raise ValueError(f"--limit {options.limit} must be 1 or more")
    data = open_copies(options.data, options.subset)
    copies, database = (descriptors(model, source, options, strict=True) for source in (data.copies, data.photographs))
    if options.distractors:
        others = descriptors(model, part_of(open_path(options.distractors), options.limit), options)
        database = np.concatenate([database, others])
    rows: list[list[str | float]] = [["copy detection", "mAP", "micro AP"]]
    numbers = {"copy_detection/distractors": float(len(database) - len(data.photographs))}
    variants = {"": (copies, database)}
    if options.whitening:
        learnt = whitening(descriptors(model, part_of(open_path(options.whitening), options.limit), options))
        variants["whitened"] = (whiten(copies, *learnt), whiten(database, *learnt))
    for name, features in variants.items():
        scores = copy_detection(*features, data.original)
        numbers |= {f"copy_detection/{name}{'_' * bool(name)}{key}": value for key, value in scores.items()}
        rows.append([f"{options.subset} {name}".strip(), scores["map"], scores["micro_ap"]])
    return Result(numbers, rows, [_draw(data, rankings(*variants[name]), options, folder)])


def descriptors(model: Extractor, source: Source, options: argparse.Namespace, *, strict: bool = False) -> np.ndarray:
    """Returns features `(images, 2 * dim)`: CLS beside the generalised mean of the patches.

    Images that cannot be used are left out and counted on stderr.

    Raises:
      ValueError: when there is such an image with `strict`, as where the truth counts on all, or when all are.
    """
    found = extracted(model, source, options, outputs=("cls", "gem_patch"), how="squash")
    if strict:
        check_complete(source, found)
    return np.concatenate([found["cls"], found["gem_patch"]], axis=1)


def _draw(data: Copies, ranking: np.ndarray, options: argparse.Namespace, folder: Path) -> Path:
    """Shows copies with what was found first; distractors are not shown but counted."""
    rows = []
    for query in range(0, len(ranking), max(1, len(ranking) // QUERIES))[:QUERIES]:
        photographs = [int(index) for index in ranking[query] if index < len(data.photographs)][:FOUND]
        places = {int(index): place for place, index in enumerate(ranking[query])}
        found = [
            (
                f"rank {places[index] + 1}",
                framed(picture_of(data.photographs, index), right=data.original[query] == index),
            )
            for index in photographs
        ]
        rows.append([(data.copies.name(query), picture_of(data.copies, query)), *found])
    title = f"Copies of {options.subset} (left) and the nearest photographs"
    return save(page(rows, title=title), folder / "copies.png")
