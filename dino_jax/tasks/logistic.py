"""Logistic regression on frozen CLS features: a quick linear evaluation without augmentation."""

import argparse
from pathlib import Path

import numpy as np

from dino_jax.evals.linear import check_share, hold_out
from dino_jax.evals.logistic import MOST_STEPS, STRENGTHS, fit, predict, standardise
from dino_jax.models import Extractor
from dino_jax.pictures.charts import over_setting
from dino_jax.tasks import Result
from dino_jax.tasks.classes import add_data_arguments, check_classes, draw_confusions, features_of, open_data


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
    x, test_x = standardise(train["cls"], test["cls"])
    kept, held = hold_out(train["labels"], share=options.validation, seed=options.seed, names=data.class_names)
    settings = {"classes": len(data.class_names), "most_steps": options.steps}
    strengths = tuple(options.strengths)
    tried = fit(x[kept], train["labels"][kept], strengths=strengths, **settings)
    validation = np.mean(predict(tried, x[held]) == train["labels"][held], axis=1)
    best = int(np.argmax(validation))
    final = fit(x, train["labels"], strengths=strengths[best : best + 1], **settings)
    predictions = predict(final, test_x)[0]
    accuracy = float(np.mean(predictions == test["labels"]))
    numbers = {
        "logistic/accuracy": accuracy,
        "logistic/validation": float(validation[best]),
        "logistic/strength": strengths[best],
    }
    numbers |= {f"logistic/validation_C{c:g}": float(v) for c, v in zip(strengths, validation, strict=True)}
    rows: list[list[str | float]] = [["logistic regression", *(f"C = {c:g}" for c in strengths)]]
    rows.append(["validation", *map(float, validation)])
    rows.append(["test, chosen C", *(accuracy if i == best else "" for i in range(len(strengths)))])
    title = f"Logistic regression, C = {strengths[best]:g}, {accuracy:.1%}"
    pictures = draw_confusions(data, test["ids"], test["labels"], predictions, folder, title=title)
    path = folder / "strengths.png"
    line = {"validation": validation}
    pictures.append(
        over_setting(strengths, line, path, title=title, setting="inverse penalty C", chosen=("validation", best))
    )
    return Result(numbers, rows, pictures)
