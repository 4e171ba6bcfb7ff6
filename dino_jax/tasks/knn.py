"""k-NN classification of images: DINO, arXiv 2104.14294, section 4.1."""

import argparse
from pathlib import Path

import numpy as np

from dino_jax.data.labelled import Labelled
from dino_jax.evals.knn import KS, TEMPERATURE, few_shot, vote
from dino_jax.extraction import Features
from dino_jax.models import Extractor
from dino_jax.pictures.page import framed, page, save
from dino_jax.tasks import Result, refuse
from dino_jax.tasks.classes import (
    add_data_arguments,
    check_classes,
    draw_confusions,
    features_of,
    nearest,
    open_data,
    pixels_of,
)
from dino_jax.tasks.images import picture_of

QUERIES = 8  # test images shown with their neighbours
SHOWN = 6  # neighbours of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    add_data_arguments(parser)
    several = " ".join(map(str, KS))
    text = f"numbers of neighbours (default: {several}, up to the number of training images)"
    parser.add_argument("--k", type=int, nargs="+", help=text)
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[TEMPERATURE], help="temperatures of the weighted vote"
    )
    parser.add_argument(
        "--shots", type=int, nargs="*", default=[], help="also classify with this many training images per class"
    )
    parser.add_argument("--draws", type=int, default=5, help="random draws of each few-shot training set")
    parser.add_argument("--pixels", action="store_true", help="also classify by raw pixels, shrunk to 16 x 16")


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Classifies test images by their nearest training images.

    Raises:
      ValueError: wrong data, or a k larger than the training set.
    """
    data = open_data(options, model)
    asked = options.k or [1]
    if not 1 <= min(asked) <= max(asked) <= len(data.train):
        raise ValueError(f"--k {options.k} must be 1 to {len(data.train)}, the number of training images")
    if any(not temperature > 0 for temperature in options.temperatures):
        raise ValueError(f"--temperatures {min(options.temperatures)} must be above 0 (inf is a plain majority)")
    if not options.shots:
        refuse(options, "draws", "without --shots")
    if options.draws < 1:
        raise ValueError(f"--draws {options.draws} must be 1 or more")
    most = len(data.train) // len(data.class_names)
    if options.shots and not 1 <= min(options.shots) <= max(options.shots) <= most:
        raise ValueError(f"--shots {options.shots} must be 1 to {most}, as many as a class has training images")
    train, test = (features_of(model, source, options) for source in (data.train, data.test))
    check_classes(data, train["labels"], options)
    if options.k is None:
        options.k = [k for k in KS if k <= len(train["labels"])] or [1]
    cosines, indices = nearest(train["cls"], test["cls"], k=max(options.k))
    winners = vote(
        cosines,
        train["labels"][indices],
        ks=options.k,
        temperatures=options.temperatures,
        classes=len(data.class_names),
    )
    accuracies = np.mean(winners == test["labels"], axis=-1)
    numbers, rows = _report(accuracies, options)
    if options.pixels:
        pixels = _pixel_accuracies(data, train, test, options)
        numbers |= {f"knn/pixels_k{k}": value for k, value in zip(options.k, pixels, strict=True)}
        rows.append(["raw pixels, 16 x 16", *pixels])
    for shots in options.shots:
        found = _few_shot(train, test, shots, options)
        numbers |= {f"knn/{shots}_shot_mean": float(found.mean()), f"knn/{shots}_shot_std": float(found.std())}
        text = f"{found.mean():.1%} ± {found.std():.1%}"
        rows.append([f"{shots} per class, {options.draws} draws", text, *[""] * (len(options.k) - 1)])
    best = np.unravel_index(np.argmax(accuracies), accuracies.shape)
    predictions = winners[best]
    title = f"k-NN, k = {options.k[best[1]]}, {accuracies[best]:.1%}"
    pictures = draw_confusions(data, test["ids"], test["labels"], predictions, folder, title=title)
    pictures.append(_draw_neighbours(data, train, test, indices, predictions, folder))
    return Result(numbers, rows, pictures)


def _report(accuracies: np.ndarray, options: argparse.Namespace) -> tuple[dict[str, float], list[list[str | float]]]:
    """Returns the numbers and the table of accuracies `(temperatures, ks)`."""
    named = list(zip(options.temperatures, accuracies, strict=True))
    numbers = {
        f"knn/k{k}_t{temperature:g}": float(value)
        for temperature, row in named
        for k, value in zip(options.k, row, strict=True)
    }
    rows: list[list[str | float]] = [["k-NN accuracy", *(f"k = {k}" for k in options.k)]]
    rows += [[f"temperature {temperature:g}", *map(float, row)] for temperature, row in named]
    return numbers, rows


def _few_shot(train: Features, test: Features, shots: int, options: argparse.Namespace) -> np.ndarray:
    """Returns the accuracy of each draw; as many neighbours vote as a class has images."""
    sets = train["cls"], train["labels"], test["cls"], test["labels"]
    return few_shot(*sets, shots=shots, draws=options.draws, k=shots, temperature=options.temperatures[0])


def _pixel_accuracies(data: Labelled, train: Features, test: Features, options: argparse.Namespace) -> list[float]:
    """Returns the accuracy by raw pixels for each k."""
    x, test_x = pixels_of(data, train, test)
    mean = x.mean(axis=0)
    cosines, indices = nearest(x - mean, test_x - mean, k=max(options.k))
    winners = vote(cosines, train["labels"][indices], ks=options.k, classes=len(data.class_names))
    return [float(value) for value in np.mean(winners[0] == test["labels"], axis=-1)]


def _draw_neighbours(
    data: Labelled, train: Features, test: Features, indices: np.ndarray, predictions: np.ndarray, folder: Path
) -> Path:
    """Shows test images, half of them misclassified where there are any, with their nearest training images."""
    wrong = np.flatnonzero(predictions != test["labels"])
    right = np.flatnonzero(predictions == test["labels"])
    chosen = [group[:: max(1, len(group) // (QUERIES // 2))][: QUERIES // 2] for group in (right, wrong)]
    rows = []
    for place in np.concatenate(chosen):
        label, said = int(test["labels"][place]), int(predictions[place])
        verdict = "right" if said == label else f"taken for {data.class_names[said]}"
        near = indices[place, :SHOWN]
        found = [framed(picture_of(data.train, train["ids"][i]), right=train["labels"][i] == label) for i in near]
        query = picture_of(data.test, test["ids"][place])
        rows.append([(f"{data.class_names[label]}: {verdict}", query), *(("", picture) for picture in found)])
    title = f"Test images and their {min(SHOWN, indices.shape[1])} nearest training images"
    title += " (green: same class, orange: another)"
    return save(page(rows, title=title), folder / "neighbours.png")
