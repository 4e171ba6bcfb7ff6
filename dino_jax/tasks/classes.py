"""What the classification tasks share: options of the data, features of training and test images, pictures."""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dino_jax import sharding
from dino_jax.data.deep import decoder
from dino_jax.data.fit import fit
from dino_jax.data.labelled import Labelled, open_labelled
from dino_jax.data.reading import read_samples
from dino_jax.data.sources import Source
from dino_jax.evals.knn import raw_pixels
from dino_jax.evals.neighbours import neighbours
from dino_jax.extraction import Features
from dino_jax.models import Extractor
from dino_jax.pictures.confusion import confusion
from dino_jax.pictures.page import page, save
from dino_jax.tasks.images import SIDE, add_extraction_arguments, extracted, picture_of

WORST = 6  # pairs of classes shown by examples
SHOWN = 6  # images of each
AHEAD = 256  # images that are decoded while others are used


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name images with classes."""
    parser.add_argument("--data", required=True, metavar="PATH", help="training images, or a folder with train and val")
    parser.add_argument("--test", default="", metavar="PATH", help="test images, if --data does not hold them")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use at most N training and N test images, spread evenly"
    )
    parser.add_argument(
        "--fit",
        default="centre",
        choices=("centre", "crop"),
        help="centre: resize the shorter side to 256/224 of --size and cut the centre, as the papers do; "
        "crop: resize it to --size",
    )
    add_extraction_arguments(parser)


def open_data(options: argparse.Namespace, model: Extractor) -> Labelled:
    """Opens the images that the options name, in the channels and bits of the model."""
    decode = decoder(model.backbone.in_channels, model.bits)
    return open_labelled(options.data, options.test, limit=options.limit, decode=decode)


def pixels_of(data: Labelled, train: Features, test: Features) -> tuple[np.ndarray, np.ndarray]:
    """Returns raw pixels, see `knn.raw_pixels`, of the training and test images that have features.

    Raises:
      ValueError: for an image that has features, which were kept, and cannot be read any more.
    """

    def images(source: Source, features: Features) -> Iterator[np.ndarray]:
        ids = features["ids"].tolist()
        samples = read_samples(source, ids, prepare=functools.partial(fit, size=SIDE), ahead=AHEAD)
        for index, sample in zip(ids, samples, strict=True):
            if sample is None:
                raise ValueError(f"{source.name(index)} cannot be read any more: restore it, or delete --cache")
            yield sample[0]

    return raw_pixels(images(data.train, train)), raw_pixels(images(data.test, test))


def features_of(
    model: Extractor, source: Source, options: argparse.Namespace, *, how: str | None = None, **settings: Any
) -> Features:
    """Extracts features of labelled images, brought to size as the options say or by `how`, see `images.extracted`.

    Raises:
      ValueError: when an image has no label.
    """
    features = extracted(model, source, options, how=how or options.fit, **settings)
    unlabelled = np.flatnonzero(features["labels"] < 0)
    if len(unlabelled):
        name = source.name(int(features["ids"][unlabelled[0]]))
        raise ValueError(f"{len(unlabelled)} images have no class, such as {name}: put each into a folder of its class")
    return features


def check_classes(data: Labelled, labels: np.ndarray, options: argparse.Namespace) -> None:
    """Raises ValueError when none of a class's training images can be used, unless --limit left them out.

    Args:
      labels: of the training images that could be used.
    """
    missing = sorted(set(range(len(data.class_names))) - set(labels.tolist()))
    if missing and options.limit is None:
        name = data.class_names[missing[0]]
        raise ValueError(f"no training image of class {name} can be used: add some, or remove the class")


def nearest(train_features: np.ndarray, queries: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds neighbours as `evals.neighbours.neighbours`, the queries spread over the devices of this process."""
    mesh = sharding.make_mesh(devices=jax.local_devices())
    parts = sharding.data_shards(mesh)
    if parts == 1:
        return neighbours(train_features, queries, k=k)
    block = parts * min(1024, -(-len(queries) // parts))
    placement, whole = sharding.batch(mesh), sharding.replicated(mesh)
    return neighbours(train_features, queries, k=k, block=block, placement=placement, whole=whole)


def draw_confusions(
    data: Labelled, ids: np.ndarray, labels: np.ndarray, predictions: np.ndarray, folder: Path, *, title: str
) -> list[Path]:
    """Draws the confusion matrix of the worst classes, and examples of the most frequent confusions.

    Args:
      ids, labels, predictions: `(test,)`, of the test images.
    """
    count = len(data.class_names)
    counts = np.zeros((count, count), int)
    np.add.at(counts, (labels, predictions), 1)
    drawn = [confusion(counts, data.class_names, folder / "confusion.png", title=f"{title}: confusion")]
    wrong = counts - np.diag(np.diag(counts))
    rows = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:WORST]:
        truth, said = divmod(int(flat), count)
        if not wrong[truth, said]:
            continue
        members = ids[(labels == truth) & (predictions == said)][:SHOWN]
        text = f"{data.class_names[truth]} taken for {data.class_names[said]}: {wrong[truth, said]} of "
        text += f"{counts[truth].sum()}"
        rows.append([("" if column else text, picture_of(data.test, index)) for column, index in enumerate(members)])
    (folder / "confusions.png").unlink(missing_ok=True)  # of an earlier evaluation
    if rows:
        drawn.append(save(page(rows, title=f"{title}: most frequent confusions"), folder / "confusions.png"))
    return drawn
