"""Retrieval of landmarks: revisited Oxford and Paris, arXiv 1803.11285."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from dino_jax.data.landmarks import Landmarks, open_landmarks
from dino_jax.evals.retrieval import PROTOCOLS, landmark_map, rankings
from dino_jax.models import Extractor
from dino_jax.pictures.page import framed, page, save
from dino_jax.tasks import Result, refuse
from dino_jax.tasks.images import add_extraction_arguments, check_complete, extracted, picture_of

QUERIES = 8  # shown
FOUND = 7  # images shown with each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument("--data", required=True, metavar="PATH", help="folder or tar with gnd_*.pkl and jpg/")
    parser.add_argument(
        "--fit",
        default="squash",
        choices=("squash", "crop", "native"),
        help="squash: squeeze the whole image into a square; crop: cut the centre; native: keep the pixels",
    )
    add_extraction_arguments(parser)


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Ranks the database by the cosine of CLS features and scores it by the three protocols.

    Raises:
      ValueError: wrong data or settings, or an image that cannot be used, as the truth counts on all.
    """
    if options.fit == "native":
        refuse(options, "size", "with --fit native, which keeps the pixels")
    data = open_landmarks(options.data)
    features = []
    for source in (data.queries, data.database):
        found = extracted(model, source, options, how=options.fit)
        check_complete(source, found)
        features.append(found["cls"])
    ranking = rankings(*features)
    scores = landmark_map(ranking, [dataclasses.asdict(truth) for truth in data.truth])
    numbers = {f"retrieval/{name}": value for name, value in scores.items()}
    rows: list[list[str | float]] = [["protocol", "mAP", "mP@1", "mP@5", "mP@10"]]
    for protocol in PROTOCOLS:
        if f"{protocol}/map" in scores:
            rows.append([protocol, *(scores[f"{protocol}/{name}"] for name in ("map", "mp1", "mp5", "mp10"))])
    return Result(numbers, rows, [_draw(data, ranking, folder)])


def _draw(data: Landmarks, ranking: np.ndarray, folder: Path) -> Path:
    """Shows queries with what was found first, junk left out; right is what is easy or hard."""
    rows = []
    for query in range(0, len(ranking), max(1, len(ranking) // QUERIES))[:QUERIES]:
        truth = data.truth[query]
        shown = [index for index in ranking[query] if index not in truth.junk][:FOUND]
        right = {*truth.easy.tolist(), *truth.hard.tolist()}
        found = [("", framed(picture_of(data.database, index), right=int(index) in right)) for index in shown]
        rows.append([(data.queries.name(query), picture_of(data.queries, query)), *found])
    return save(page(rows, title="Queries (left) and what was found first"), folder / "retrieved.png")
