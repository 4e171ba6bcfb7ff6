"""What a finished run shows: k-NN accuracy on held-out images, the final table, its pictures and results.json."""

import functools
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import gallery, sharding
from dino_jax.data.photometry import normalize
from dino_jax.data.pipeline import eval_batches
from dino_jax.data.sources import Source
from dino_jax.data.subset import Subset
from dino_jax.evals.knn import knn, raw_pixels
from dino_jax.extraction import extract_features
from dino_jax.metrics import read_metrics
from dino_jax.models import Extractor
from dino_jax.progress import table
from dino_jax.state import Networks, Params, TrainState

# Maps a source to features `(images, dim)` and labels `(images,)`.
Features = Callable[[Source], tuple[np.ndarray, np.ndarray]]
BATCH = 64  # images at once; enough to fill a CPU's or an accelerator's matrix units


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
        self.voters, self.held_out = Subset(source, config.eval.knn.images), held_out
        backbone = networks.backbone

        @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
        def tokens(params: Params, images: jax.Array) -> dict[str, jax.Array]:
            images = normalize(images, config.data.mean, config.data.std)
            out: Any = backbone.apply({"params": params}, {"global": images})
            return out["global"]

        self.tokens = tokens

    def knn_of(self, params: Params, name: str) -> dict[str, float]:
        """Returns {name: weighted k-NN accuracy} of the CLS features of a backbone; empty without held-out labels."""
        if not self.labelled():
            return {}
        data = self.config.data
        model = Extractor(name, self.networks.backbone, params, tuple(data.mean), tuple(data.std))

        def features(source: Source) -> tuple[np.ndarray, np.ndarray]:
            found = extract_features(model, source, size=self.config.eval.size, batch_size=BATCH, mesh=self.mesh)
            return found["cls"], found["labels"]

        return {name: self._accuracy(features)}

    def knn_of_pixels(self) -> dict[str, float]:
        """Returns {"knn/pixels": accuracy} of the images shrunk to 16 x 16, less their mean."""
        if not self.labelled():
            return {}

        def pixels(source: Source) -> tuple[np.ndarray, np.ndarray]:
            batches = eval_batches(source, size=self.config.eval.size, batch_size=BATCH)
            found = [(raw_pixels(b["images"]), b["labels"], b["valid"]) for b in batches]
            features, labels, valid = (np.concatenate(part) for part in zip(*found, strict=True))
            return features[valid], labels[valid]

        return {"knn/pixels": self._accuracy(pixels, centre=True)}

    def labelled(self) -> bool:
        """Tells whether both training and held-out images have labels."""
        return self.held_out is not None and bool(self.held_out.class_names) and bool(self.voters.class_names)

    def _accuracy(self, features: Features, *, centre: bool = False) -> float:
        assert self.held_out is not None
        train, train_labels = features(self.voters)
        test, test_labels = features(self.held_out)
        mean = train.mean(0) if centre else 0.0
        k = self.config.eval.knn.k
        return knn(train - mean, train_labels, test - mean, test_labels, ks=(k,))[k]

    def finish(self, state: TrainState, *, seconds: float) -> dict[str, float]:
        """Evaluates a finished run, draws its pictures, prints a table and says where things are.

        Returns:
          Flat `group/name` numbers: accuracies, the last record's losses and health, time and peak memory.
        """
        results = self.knn_of_pixels() | self.knn_of(self.untrained(), "knn/untrained")
        results |= self.knn_of(state.teacher["backbone"], "knn/trained")
        records = read_metrics(self.folder / "metrics.jsonl") if (self.folder / "metrics.jsonl").exists() else []
        if records:
            results |= {n: v for n, v in records[-1].items() if n.startswith(("loss/", "health/", "train/"))}
        results |= {"time/seconds": seconds, "memory/peak_gib": peak_memory()}
        drawn = self.draw(state, records) if self.config.log.pictures else []
        if jax.process_index() == 0:
            self.show(results, drawn)
        return results

    def untrained(self) -> Params:
        """Returns the backbone with which the run began, drawn anew where its arrays belong."""

        def backbone() -> Params:
            return self.networks.init(jax.random.key(self.config.seed))["backbone"]

        return jax.jit(backbone, out_shardings=sharding.of_state(jax.eval_shape(backbone), self.mesh))()

    def draw(self, state: TrainState, records: list[dict[str, Any]]) -> list[Path]:
        """Draws the pictures of the run into pictures/."""
        return gallery.draw(
            self.config,
            self.networks,
            self.mesh,
            self.tokens,
            self.held_out or self.voters.source,
            state,
            records,
            self.folder / "pictures",
        )

    def show(self, results: dict[str, float], drawn: list[Path]) -> None:
        """Prints the table, and where the numbers and pictures are."""
        print()
        if "knn/trained" in results:
            rows: list[list[str | float]] = [["features", f"{self.config.eval.knn.k}-NN accuracy on held-out images"]]
            names = {"pixels": "raw pixels", "untrained": "untrained teacher", "trained": "trained teacher"}
            rows += [[words, f"{100 * results[f'knn/{name}']:.1f} %"] for name, words in names.items()]
            print(table(rows))
        elif self.held_out is None:
            print("no k-NN accuracy: set data.test_path to a folder of labelled images to get one")
        else:
            print("no k-NN accuracy: the images have no labels (sub-folders named by class)")
        print(f"{results['time/seconds']:.0f} s, peak memory {results['memory/peak_gib']:.2f} GiB")
        print(f"numbers: {self.folder / 'results.json'}, {self.folder / 'metrics.jsonl'}")
        if drawn:
            print(f"pictures: {', '.join(str(path) for path in drawn)}", flush=True)


def peak_memory() -> float:
    """Returns the largest resident size of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux reports KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
