"""Extracts features and classifies by k-NN on one device and on all: `python -m tests.knn_run IMAGES`.

Prints both sets of features' largest difference, and whether the neighbours are the same, as JSON.
"""

import json
import sys

import jax
import numpy as np

from dino_jax import sharding
from dino_jax.data.sources import open_path
from dino_jax.evals.neighbours import neighbours
from dino_jax.extraction import extract_features
from dino_jax.tasks.classes import nearest
from tests.tiny_model import tiny_model

if __name__ == "__main__":
    source = open_path(sys.argv[1])
    meshes = [sharding.make_mesh(devices=devices) for devices in (jax.devices()[:1], jax.devices())]
    one, all_devices = (
        extract_features(tiny_model(), source, size=16, batch_size=5, mesh=mesh)["cls"] for mesh in meshes
    )
    alone = neighbours(one, one, k=7)
    together = nearest(one, one, k=7)
    print(
        json.dumps(
            {
                "devices": len(jax.devices()),
                "features": float(np.abs(one - all_devices).max()),
                "cosines": float(np.abs(alone[0] - together[0]).max()),
                "neighbours": bool(np.array_equal(alone[1], together[1])),
            }
        )
    )
