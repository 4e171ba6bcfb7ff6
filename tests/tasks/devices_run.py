"""Evaluates on one device and on all: `python -m tests.tasks.devices_run COLORS MASKS VIDEO` prints both as JSON.

Features, and the numbers of what computes more than features on several devices.
"""

import functools
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np

from dino_jax import sharding
from dino_jax.data.sources import open_path
from dino_jax.evals.neighbours import neighbours
from dino_jax.extraction import extract_features
from dino_jax.scores import Scores
from dino_jax.tasks import open_task
from dino_jax.tasks.classes import nearest
from dino_jax.tasks.patches import PatchFeatures, PixelPatches
from tests.tasks.planted import PATCH, options
from tests.tiny_model import tiny_model
from tests.tiny_recipe import get_config

BATCH = 5  # which the devices have to fill up


def features(model, colors):
    """Returns features of images and of patches."""
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 16, 24, 3), np.uint8)
    return {
        "cls": extract_features(model, open_path(f"{colors}/train"), size=16, batch_size=BATCH)["cls"].tolist(),
        "patches": PatchFeatures(PixelPatches(PATCH), batch_size=3)(images).tolist(),
    }


def numbers_of_tasks(model, colors, masks, video):
    """Runs evaluation tasks; returns their numbers by name."""
    tasks = {
        "linear": (colors, "--size", 16, "--epochs", 2, "--train-batch", 10, "--rates", 0.1, "--views", 0),
        "segmentation": (masks, "--size", 0, "--crop", 32, "--head", "closed"),
        "tracking": (video, "--size", 0),
        "discovery": (video, "--size", 0),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for task, (data, *words) in tasks.items():
            given = options(task, "--data", data, "--batch-size", BATCH, *words)
            found |= open_task(task).run(model, given, Path(folder) / task).numbers
    return found


def numbers_while_training(model, colors, masks):
    """Runs the evaluations of a training run; returns their numbers by name."""
    config = get_config()
    config.eval.size, config.eval.dense.path = 16, masks
    splits = [open_path(f"{colors}/{split}") for split in ("train", "val")]
    scores = Scores(config, SimpleNamespace(backbone=model.backbone), sharding.make_mesh(), *splits)
    return scores.knn(model.params) | scores.dense(model.params) | scores.quality(model.params)


def evaluated(model, colors, masks, video):
    """Returns all that is compared."""
    numbers = numbers_of_tasks(model, colors, masks, video) | numbers_while_training(model, colors, masks)
    return features(model, colors) | {"numbers": numbers}


def same_neighbours(features):
    """Tells whether all devices find the neighbours that one finds."""
    one, every = neighbours(features, features, k=7), nearest(features, features, k=7)
    return bool(np.array_equal(one[1], every[1]) and np.abs(one[0] - every[0]).max() < 1e-6)


if __name__ == "__main__":
    model = tiny_model()
    every = evaluated(model, *sys.argv[1:])
    alone = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    with mock.patch.object(sharding, "make_mesh", alone):
        one = evaluated(model, *sys.argv[1:])
    near = same_neighbours(np.array(one["cls"], np.float32))
    print(json.dumps({"devices": len(jax.devices()), "one": one, "every": every, "same_neighbours": near}))
