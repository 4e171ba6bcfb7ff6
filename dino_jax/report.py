"""What a finished run shows: k-NN accuracy on held-out images, pictures of the features, results.json."""

import functools
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import pictures, sharding
from dino_jax.data.photometry import normalize
from dino_jax.data.pipeline import eval_batches
from dino_jax.data.sources import Source
from dino_jax.data.subset import Subset
from dino_jax.evals.features import extract
from dino_jax.evals.knn import knn, raw_pixels
from dino_jax.metrics import read_metrics
from dino_jax.models import last_attention
from dino_jax.phases import in_order
from dino_jax.progress import table
from dino_jax.state import Networks, Params, TrainState

BATCH = 64  # images at once; enough to fill a CPU's or an accelerator's matrix units
SHOWN = 6  # images in a picture
FINEST_GRID = 24  # patches per side in pictures of small images, which are enlarged to it


class Report:
    """Evaluates the networks of a run."""

    def __init__(
        self,
        config: ConfigDict,
        networks: Networks,
        mesh: Mesh,
        folder: Path,
        source: Source,
        held_out: Source | None,
    ):
        self.config, self.networks, self.mesh, self.folder = config, networks, mesh, folder
        self.voters, self.held_out = Subset(source, config.knn.images), held_out
        self.shown = held_out or source
        backbone = networks.backbone

        @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
        def tokens(params: Params, images: jax.Array) -> dict[str, jax.Array]:
            images = normalize(images, config.data.mean, config.data.std)
            return backbone.apply({"params": params}, {"global": images})["global"]

        self.tokens = tokens

    def knn_of(self, params: Params, name: str) -> dict[str, float]:
        """Returns {name: weighted k-NN accuracy} of the CLS features of a backbone; empty without held-out labels."""
        if not self.labelled():
            return {}
        shards = sharding.data_shards(self.mesh)

        def features(images: np.ndarray) -> dict[str, jax.Array]:
            return {"features": self.tokens(params, sharding.place_whole(images, self.mesh))["cls"]}

        return {name: self._accuracy(features, BATCH + -BATCH % shards)}

    def knn_of_pixels(self) -> dict[str, float]:
        """Returns {"knn/pixels": accuracy} of the images shrunk to 16 x 16, less their mean."""
        if not self.labelled():
            return {}
        return {"knn/pixels": self._accuracy(lambda images: {"features": raw_pixels(images)}, BATCH, centre=True)}

    def labelled(self) -> bool:
        """Tells whether both training and held-out images have labels."""
        return self.held_out is not None and bool(self.held_out.class_names) and bool(self.voters.class_names)

    def _accuracy(self, apply: Any, batch_size: int, *, centre: bool = False) -> float:
        assert self.held_out is not None
        size, k = self.config.knn.size, self.config.knn.k
        train, test = (
            extract(apply, eval_batches(source, size=size, batch_size=batch_size))
            for source in (self.voters, self.held_out)
        )
        mean = train["features"].mean(0) if centre else 0.0
        return knn(train["features"] - mean, train["labels"], test["features"] - mean, test["labels"], ks=(k,))[k]

    def finish(self, state: TrainState, *, seconds: float) -> dict[str, float]:
        """Evaluates a finished run, draws its pictures, prints a table and says where things are.

        Returns:
          Flat `group/name` numbers: accuracies, the last record's losses and health, time and peak memory.
        """
        untrained = self.networks.init(jax.random.key(self.config.seed))["backbone"]
        results = self.knn_of_pixels() | self.knn_of(untrained, "knn/untrained")
        results |= self.knn_of(state.teacher["backbone"], "knn/trained")
        records = read_metrics(self.folder / "metrics.jsonl") if (self.folder / "metrics.jsonl").exists() else []
        if records:
            results |= {n: v for n, v in records[-1].items() if n.startswith(("loss/", "health/", "train/"))}
        results |= {"time/seconds": seconds, "memory/peak_gib": peak_memory()}
        if jax.process_index() == 0:
            self.show(state, results, records)
        return results

    def show(self, state: TrainState, results: dict[str, float], records: list[dict[str, Any]]) -> None:
        """Prints the table and draws the pictures."""
        print()
        if "knn/trained" in results:
            rows: list[list[str | float]] = [["features", f"{self.config.knn.k}-NN accuracy on held-out images"]]
            for name, words in (
                ("pixels", "raw pixels"),
                ("untrained", "untrained teacher"),
                ("trained", "trained teacher"),
            ):
                rows.append([words, f"{100 * results[f'knn/{name}']:.1f} %"])
            print(table(rows))
        elif self.held_out is None:
            print("no k-NN accuracy: set data.test_path to a folder of labelled images to get one")
        print(f"{results['time/seconds']:.0f} s, peak memory {results['memory/peak_gib']:.2f} GiB")
        print(f"numbers: {self.folder / 'results.json'}, {self.folder / 'metrics.jsonl'}")
        if self.config.log.pictures:
            print("pictures: " + ", ".join(str(path) for path in self.draw(state, records)), flush=True)

    def draw(self, state: TrainState, records: list[dict[str, Any]]) -> list[Path]:
        """Draws principal components, attention, cosine maps and curves into pictures/."""
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        patch = self.networks.backbone.patch_size
        side = max(FINEST_GRID, -(-self.config.knn.size // patch)) * patch
        batch = next(eval_batches(_Spread(self.shown, SHOWN), size=side, batch_size=min(SHOWN, len(self.shown))))
        images = batch["images"][batch["valid"]]
        grid = (len(images), side // patch, side // patch)
        names = None
        if self.shown.class_names:
            names = [self.shown.class_names[label] for label in batch["labels"][batch["valid"]]]

        def patches(params: Params) -> np.ndarray:
            return np.asarray(self.tokens(params, images)["patches"], np.float32).reshape(*grid, -1)

        teacher = state.teacher["backbone"]
        normalized = normalize(images, self.config.data.mean, self.config.data.std)
        weights = np.asarray(last_attention(self.networks.backbone, teacher, normalized))
        weights = weights[:, :, 0, 1 + self.networks.backbone.registers :].reshape(len(images), -1, *grid[1:])
        networks = {"student": patches(state.student["backbone"])}
        if state.gram_teacher is not None:
            networks["Gram teacher"] = patches(state.gram_teacher)
        else:
            networks["EMA teacher"] = patches(teacher)
        paths = [
            pictures.pca(images, patches(teacher), folder / "pca.png", names=names),
            pictures.attention(images, weights, folder / "attention.png", names=names),
            pictures.cosine_maps(images, networks, folder / "cosine.png", names=names),
        ]
        if records:
            boundaries = [(phase.name, phase.first) for phase in in_order(self.config)]
            paths.append(pictures.curves(records, folder / "curves.png", phases=boundaries))
        return paths


class _Spread(Subset):
    """A few images in the middle of equal parts of a source, so that they differ in label."""

    def _place(self, index: int) -> int:
        return (2 * index + 1) * len(self.source) // (2 * len(self))


def peak_memory() -> float:
    """Returns the largest resident size of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux reports KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
