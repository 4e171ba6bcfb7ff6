"""Evaluation tasks, one module each: its options on the command line, and its run on a model and data.

What several have in common is in `images` (features of whole images), `classes` (classification), `patches` (features
of patches) and `head_training`.

A task module has two functions:

    add_arguments(parser)           adds its own options
    run(model, options, folder)     evaluates an `Extractor`, draws its pictures into `folder`, returns a `Result`
"""

import dataclasses
import difflib
import importlib
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
