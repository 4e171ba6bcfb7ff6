"""What a finished run shows: the quality of its networks, the final table, its pictures and results.json."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax.data.sources import Source
from dino_jax.metrics import read_metrics
from dino_jax.phases import in_order
from dino_jax.progress import table
from dino_jax.scores import Scores
from dino_jax.state import Params, TrainState, student_weights, teacher_weights


class Report:
    """Evaluates the networks of a finished run, and shows them."""

    def __init__(
        self,
        config: ConfigDict,
        scores: Scores,
        mesh: Mesh,
        folder: Path,
        shown: Source,
        first_backbone: Callable[[], Params],
    ):
        """Takes what `train.Trainer` has.

        Args:
          shown: images of which some are drawn.
          first_backbone: returns the backbone with which the run began.
        """
        self.config, self.scores, self.mesh, self.folder = config, scores, mesh, folder
        self.shown, self.first_backbone = shown, first_backbone

    def finish(self, state: TrainState, *, seconds: Callable[[], float]) -> dict[str, float]:
        """Evaluates a finished run, draws its pictures, prints a table and says where things are.

        Args:
          state: of the networks after the last step.
          seconds: tells how long the run has taken so far.

        Returns:
          Flat `group/name` numbers: accuracies, the last record's losses and health, time and peak memory.
        """
        scores, teacher = self.scores, teacher_weights(state)
        problems = []
        try:
            results = scores.baselines(self.first_backbone)
        except ValueError as error:  # of the backbone with which the run began
            if jax.process_count() > 1:  # the others wait for this one
                raise
            results = scores.knn_of_pixels()
            problems.append(f"not compared with the network as the run began: {error}")
        results |= scores.knn(teacher, "knn/trained")
        results |= scores.dense(teacher) | scores.quality(teacher)
        records = read_metrics(self.folder / "metrics.jsonl")
        if records:
            results |= {n: v for n, v in records[-1].items() if n.startswith(("loss/", "health/", "train/"))}
        shown = {"knn/teacher": "knn/trained", "dense/miou": "dense/miou"}
        final = {"step": int(state.step)} | {name: results[key] for name, key in shown.items() if key in results}
        drawn = []
        if self.config.log.pictures:
            try:
                drawn = self.draw(state, records, final)
            except (OSError, ValueError) as error:  # the numbers are worth having without them
                if isinstance(error, ValueError) and jax.process_count() > 1:  # of its images: the others have gone on
                    raise
                fix = "fix that and run the same command to draw them"
                problems.append(f"the pictures could not be drawn ({error}): {fix}")
        results |= {"train/step": int(state.step), "time/seconds": seconds(), "memory/peak_gib": peak_memory()}
        if jax.process_index() == 0:
            self.show(results, drawn, problems)
        return results

    def draw(self, state: TrainState, records: list[dict[str, Any]], final: dict[str, Any]) -> list[Path]:
        """Draws the pictures of the run into pictures/, see `gallery`."""
        from dino_jax import gallery  # with it comes matplotlib, which the start of a run need not wait for

        folder = self.folder / "pictures"
        weights = {"student": student_weights(state), "EMA teacher": teacher_weights(state)}
        if state.gram_teacher is not None:
            weights["Gram teacher"] = state.gram_teacher
        models = {name: self.scores.extractor(params) for name, params in weights.items()}
        drawn = gallery.draw_features(models, self.shown, self.mesh, folder, size=self.config.eval.size)
        if jax.process_index() == 0:
            drawn += gallery.draw_curves(in_order(self.config), records, final, folder)
        return drawn

    def show(self, results: dict[str, float], drawn: list[Path], problems: list[str]) -> None:
        """Prints the table, where the numbers and pictures are, and what could not be done."""
        print()
        if "knn/trained" in results:
            rows: list[list[str | float]] = [["features", f"{self.config.eval.knn.k}-NN accuracy on held-out images"]]
            first = "teacher as loaded" if self.config.init.weights else "untrained teacher"
            names = {"pixels": "raw pixels", "untrained": first, "trained": "trained teacher"}
            known = {name: results[f"knn/{name}"] for name in names if f"knn/{name}" in results}
            rows += [[names[name], f"{100 * accuracy:.1f} %"] for name, accuracy in known.items()]
            print(table(rows))
        elif self.scores.held_out is None:
            print("no k-NN accuracy: set data.test_path or eval.knn.path to labelled images to get one")
        else:
            print("no k-NN accuracy: the images have no labels (sub-folders named after classes, two at least)")
        if "dense/miou" in results:
            print(f"mIoU of a linear probe on the trained teacher's patches: {100 * results['dense/miou']:.1f} %")
        print(f"{results['time/seconds']:.0f} s, peak memory {results['memory/peak_gib']:.2f} GiB")
        print(f"numbers: {self.folder / 'results.json'}, {self.folder / 'metrics.jsonl'}")
        if drawn:
            print(f"pictures: {', '.join(str(path) for path in drawn)}", flush=True)
        for problem in problems:
            print(problem, file=sys.stderr, flush=True)


def peak_memory() -> float:
    """Returns the largest resident size of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux reports KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
