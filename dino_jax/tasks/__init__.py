"""Evaluation tasks, one module each: its options on the command line, and its run on a model and data.

What several have in common is in `images` (features of whole images), `classes` (classification), `patches` (features
of patches), `head_training`, and `kept` (heads survive a stop).

A task module has two functions:

    add_arguments(parser)           adds its own options
    run(model, options, folder)     evaluates an `Extractor`, draws its pictures into `folder`, returns a `Result`;
                                    the options come from `parse`
"""

import argparse
import dataclasses
import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# What `python -m dino_jax.evaluate` offers, each a module of this package.
TASKS = {
    "knn": "weighted nearest neighbours on the CLS feature, few-shot too",
    "linear": "linear probe by SGD, all learning rates and feature choices at once",
    "logistic": "logistic regression by L-BFGS, a quick check",
    "segmentation": "linear head on patch features, mIoU",
    "depth": "linear head on patch features, RMSE, or scale-invariant error for relative depth",
    "tracking": "video object segmentation by label propagation, J&F",
    "discovery": "TokenCut object discovery, CorLoc",
    "retrieval": "instance retrieval, mAP (Oxford, Paris)",
    "copy_detection": "copy detection, mAP (Copydays)",
    "correspondence": "patch matching between two images, PCK",
    "video_probe": "attentive probe on the frames of videos",
    "quality": "effective rank, alignment, uniformity, patch consistency; needs no labels",
}
# Those that read images in the channels of the network; the others read RGB.
ANY_CHANNELS = ("knn", "linear", "logistic", "quality")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a task found.

    Attributes:
      numbers: flat `task/name` values, for --json.
      rows: of the printed table, the first being its header.
      pictures: files that were drawn.
    """

    numbers: dict[str, float]
    rows: list[list[str | float]]
    pictures: list[Path] = dataclasses.field(default_factory=list)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; `given` of the result has the names of the options that are on it."""
    options = parser.parse_args(arguments)
    words = {word.split("=")[0] for word in arguments}
    options.given = {action.dest for action in parser._actions if words.intersection(action.option_strings)}
    return options


def refuse(options: argparse.Namespace, names: str, why: str) -> None:
    """Raises ValueError for one of these options, separated by spaces, that was given though it does nothing."""
    vain = [name for name in names.split() if name in options.given]
    if vain:
        raise ValueError(f"--{vain[0].replace('_', '-')} has no effect {why}: leave it out")


def open_task(name: str) -> ModuleType:
    """Imports the module of a task.

    Raises:
      ValueError: for an unknown name, with the nearest.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASKS)}"
        raise ValueError(f"there is no evaluation task {name!r}: {hint}")
    return importlib.import_module(f"dino_jax.tasks.{name}")
