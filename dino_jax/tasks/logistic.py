"""Logistic regression on frozen CLS features: a quick linear evaluation without augmentation."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dino_jax.evals.linear import check_share, hold_out
from dino_jax.evals.logistic import MOST_STEPS, STRENGTHS, fit, predict, standardise
from dino_jax.models import Extractor
from dino_jax.pictures.charts import over_setting
from dino_jax.tasks import Result
from dino_jax.tasks.classes import (
    add_data_arguments,
    check_classes,
    draw_confusions,
    features_of,
    open_data,
    pixels_of,
)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Regressions on features of one kind.

    Attributes:
      validation: accuracy of each strength on held-out training images.
      strength: the best of them.
      predictions: classes of the test images, by a regression of that strength on all training images.
      accuracy: of these.
    """

    validation: np.ndarray
    strength: float
    predictions: np.ndarray
    accuracy: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    add_data_arguments(parser)
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=list(STRENGTHS), help="inverse penalties C to try"
    )
    parser.add_argument("--steps", type=int, default=MOST_STEPS, help="maximum number of steps of L-BFGS")
    parser.add_argument(
        "--validation", type=float, default=0.1, help="fraction of the training images held out for choosing C"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed for the validation split")
    parser.add_argument("--pixels", action="store_true", help="also classify by raw pixels, shrunk to 16 x 16")


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Fits regressions of all strengths, chooses one on held-out training images, and fits it anew on all.

    Raises:
      ValueError: wrong data or settings.
    """
    if any(not strength > 0 for strength in options.strengths):
        raise ValueError(f"--strengths {options.strengths} must be above 0")
    check_share(options.validation, "--validation")
    data = open_data(options, model)
    train, test = (features_of(model, source, options) for source in (data.train, data.test))
    check_classes(data, train["labels"], options)
    labels, truth, names = train["labels"], test["labels"], data.class_names
    found = fitted(train["cls"], labels, test["cls"], truth, names, options)
    numbers, rows = _report(found, options.strengths)
    if options.pixels:
        x, test_x = pixels_of(data, train, test)
        more_numbers, more_rows = _report(
            fitted(x, labels, test_x, truth, names, options), options.strengths, key="pixels_", of=" of raw pixels"
        )
        numbers, rows = numbers | more_numbers, rows + more_rows
    title = f"Logistic regression, C = {found.strength:g}, {found.accuracy:.1%}"
    pictures = draw_confusions(data, test["ids"], truth, found.predictions, folder, title=title)
    path = folder / "strengths.png"
    line, best = {"validation": found.validation}, options.strengths.index(found.strength)
    pictures.append(
        over_setting(
            options.strengths, line, path, title=title, setting="inverse penalty C", chosen=("validation", best)
        )
    )
    heading: list[str | float] = ["logistic regression", *(f"C = {c:g}" for c in options.strengths)]
    return Result(numbers, [heading, *rows], pictures)


def fitted(
    x: np.ndarray,
    labels: np.ndarray,
    test_x: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    options: argparse.Namespace,
) -> Fitted:
    """Fits and tests regressions on features `(images, dim)`; `names` are those of the classes."""
    x, test_x = standardise(x, test_x)
    kept, held = hold_out(labels, share=options.validation, seed=options.seed, names=names)
    settings = {"classes": len(names), "most_steps": options.steps}
    tried = fit(x[kept], labels[kept], strengths=tuple(options.strengths), **settings)
    validation = np.mean(predict(tried, x[held]) == labels[held], axis=1)
    strength = options.strengths[int(np.argmax(validation))]
    predictions = predict(fit(x, labels, strengths=(strength,), **settings), test_x)[0]
    return Fitted(validation, strength, predictions, float(np.mean(predictions == truth)))


def _report(
    found: Fitted, strengths: Sequence[float], *, key: str = "", of: str = ""
) -> tuple[dict[str, float], list[list[str | float]]]:
    """Returns numbers, whose names begin with `key`, and the table's rows, whose names end with `of`."""
    numbers = {"accuracy": found.accuracy, "validation": float(found.validation.max()), "strength": found.strength}
    numbers |= {f"validation_C{c:g}": float(v) for c, v in zip(strengths, found.validation, strict=True)}
    tested = [found.accuracy if strength == found.strength else "" for strength in strengths]
    rows: list[list[str | float]] = [
        [f"validation{of}", *map(float, found.validation)],
        [f"test{of}, chosen C", *tested],
    ]
    return {f"logistic/{key}{name}": value for name, value in numbers.items()}, rows
