"""What a run writes down and shows while it trains: metrics, health, throughput, quality, progress."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import health
from dino_jax.flops import train_flops_per_image
from dino_jax.metrics import NOTHING_RESTORED, MetricsWriter, read_metrics
from dino_jax.objective import Batch, teacher_outputs
from dino_jax.phases import Phase, in_order
from dino_jax.progress import Progress
from dino_jax.scores import Interrupted, Scores
from dino_jax.state import Networks, Params, TrainState, teacher_weights
from dino_jax.throughput import Throughput

TIMES_BELOW = 2  # evaluations in a row below what the run began with, before the user is told


class Recorder:
    """Measures, writes and shows, each at its own interval; waits for the devices only where it must."""

    def __init__(
        self,
        config: ConfigDict,
        networks: Networks,
        mesh: Mesh,
        scores: Scores,
        progress: Progress,
        *,
        workdir: Path,
        resume_step: int,
        first_backbone: Callable[[], Params],
    ):
        """Opens the metrics files of a run that continues after `resume_step` (see `metrics.MetricsWriter`).

        Args:
          first_backbone: returns the backbone with which the run began.
        """
        self._first_backbone = first_backbone
        self._config, self._networks, self._mesh = config, networks, mesh
        self._scores, self._progress = scores, progress
        self._writer = MetricsWriter(workdir, resume_step)
        self._measure = jax.jit(make_health_step(networks))
        # What looks wrong is told from all records, those before a restart included.
        file = workdir / "metrics.jsonl"
        earlier = read_metrics(file) if resume_step != NOTHING_RESTORED else []
        self._recorded = recorded = earlier[-1]["step"] if earlier else 0
        if resume_step - recorded >= 2 * config.log.every:
            progress.note(f"{file} ends at step {recorded}: the records of the steps up to {resume_step} are lost")
        self._history = [record for record in earlier if any(name.startswith("health/") for name in record)]
        self.throughput: Throughput  # of the phase
        self._to_surpass: float | None = None
        self._times_below = 0
        self._compiled: set[tuple[tuple[int, ...], ...]] = set()
        self._unfinished: dict[str, float] | None = None
        self._started = time.monotonic()

    def enter(self, phase: Phase) -> None:
        """Starts to measure a phase."""
        flops = train_flops_per_image(self._networks, phase.options)
        self.throughput = Throughput(flops_per_image=flops, devices=list(self._mesh.devices.flat))
        self._compiled.clear()

    def after_step(
        self,
        phase: Phase,
        step: int,
        state: TrainState,
        batch: Mapping[str, Array],
        metrics: Mapping[str, Array],
        hyper: Mapping[str, np.float32],
    ) -> None:
        """Records what is due after `step` completed steps, unless an evaluation is due, too: `evaluate` does it then.

        Args:
          state, batch: after and of the latest step.
          metrics: what the step measured.
          hyper: the values of the schedules it was taken with.
        """
        healthy, evaluated = self._measures_health(phase, step), self._scores.due(step)
        due = step % self._config.log.every == 0 or healthy or evaluated
        shapes = tuple(array.shape for array in batch.values())
        compiled = shapes not in self._compiled  # once for each of the phase's sizes of crops
        self._compiled.add(shapes)
        if due or compiled:
            jax.block_until_ready(metrics)
        self.throughput.add(phase.options.batch_size, compiled=compiled)
        if compiled and not due:  # minutes may have passed in silence
            self._progress.update(step, phase=phase.name, loss=float(metrics["loss/total"]))
        if not due:
            return
        with self.throughput.paused():
            measured = dict(metrics)
            if healthy:
                measured |= self._measure(state, batch)
            values = {name: float(value) for name, value in jax.device_get(measured).items()}
            values |= {f"schedule/{name}": float(value) for name, value in hyper.items()}
        if evaluated:
            self._unfinished = values
        else:
            self._write(phase, step, values, healthy)

    def _measures_health(self, phase: Phase, step: int) -> bool:
        return step % self._config.log.health_every == 0 or step == phase.last

    def unfinished(self) -> dict[str, Any]:
        """Returns what a checkpoint has to hold of a step that is still to be evaluated: {"record": its values}."""
        return {} if self._unfinished is None else {"record": self._unfinished}

    def evaluate(self, phase: Phase, step: int, state: TrainState) -> bool:
        """Runs the evaluation that is due, if any, and records the step; False if that was interrupted."""
        if self._unfinished is None:
            return True
        try:
            with self.throughput.paused():
                values = self._unfinished | self._evaluate(phase, step, state)
        except Interrupted:
            self._progress.note(f"step {step}: the evaluation is left to the restart")
            return False
        self._unfinished = None
        self._write(phase, step, values, self._measures_health(phase, step))
        return True

    def finish(self, phase: Phase, step: int, state: TrainState, values: dict[str, float]) -> None:
        """Evaluates a step after whose checkpoint an earlier process ended, and writes its record if it is not there.

        Args:
          values: of the record, without the evaluation.
        """
        recorded = np.int32(self._recorded)
        if jax.process_count() > 1:  # which may not all see the newest records yet
            recorded = multihost_utils.broadcast_one_to_all(recorded)
        if recorded >= step:  # by this run before it ended, or by another restart from the same checkpoint
            return
        self.enter(phase)
        self._write(phase, step, values | self._evaluate(phase, step, state), self._measures_health(phase, step))

    def _evaluate(self, phase: Phase, step: int, state: TrainState) -> dict[str, float]:
        """Runs the protocols that are due, and says what they found, beside what training must surpass."""
        try:
            numbers = self._scores.at(step, teacher_weights(state))
        except ValueError as error:  # of the images, which may be mended while the run goes on
            if jax.process_count() > 1:  # the others wait for this one, whose end is the end of all
                raise
            self._progress.note(f"step {step}: not evaluated: {error}")
            return {}
        words = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self._progress.note(f"step {step}: {words}" if words else f"step {step}: nothing to evaluate on")
        if "knn/teacher" in numbers:
            self._tell_what_to_surpass(phase, step, numbers["knn/teacher"])
        return numbers

    def _tell_what_to_surpass(self, phase: Phase, step: int, accuracy: float) -> None:
        """Says once what the teacher's k-NN accuracy must surpass, and when, after the warm-up, it is twice below."""
        k = self._config.eval.knn.k
        if self._to_surpass is None:
            try:
                baselines = self._scores.baselines(self._first_backbone)
            except ValueError as error:  # of the backbone or the images with which the run began
                if jax.process_count() > 1:
                    raise
                self._to_surpass = -math.inf
                self._progress.note(f"step {step}: not compared with the network as the run began: {error}")
                return
            self._to_surpass = baselines["knn/untrained"]
            self._progress.note(
                f"{k}-NN accuracy of raw pixels is {baselines['knn/pixels']:.4f}, of the network as the run began "
                f"{self._to_surpass:.4f}"
            )
        below = step >= phase.warmup_ends and accuracy < self._to_surpass
        self._times_below = self._times_below + 1 if below else 0
        if self._times_below >= TIMES_BELOW:
            self._progress.note(
                f"step {step}: the teacher's {k}-NN accuracy stays below the {self._to_surpass:.4f} with which the run "
                "began: lower the peak of schedules.lr (in a new workdir)"
            )

    def _write(self, phase: Phase, step: int, values: dict[str, float], healthy: bool) -> None:
        """Writes a record and shows it; after a measurement of health, says what looks wrong."""
        self._writer.write(step, values)
        speed = self.throughput.read()
        if speed and self._scores.seconds:
            speed["throughput/evaluation_share"] = self._scores.seconds / (time.monotonic() - self._started)
        if speed:
            self._writer.write_throughput(step, speed)
        self._progress.update(step, phase=phase.name, loss=values["loss/total"], throughput=speed)
        if healthy:
            self._history.append({"step": step} | values | speed)
            # Outputs are uniform and features alike as the run begins, not as a later phase does.
            for words in health.diagnose(self._history, warmup_steps=in_order(self._config)[0].warmup_ends):
                self._progress.note(f"step {step}: {words}")

    def sync(self) -> None:
        """Waits until the records have reached the disk."""
        self._writer.sync()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        self._writer.close()


def make_health_step(networks: Networks) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """Builds the measurement of a run's health on a batch: flat `health/...` float32 scalars (see `health.measure`).

    Teacher distributions are softmaxes at `health.TEMPERATURE`: Sinkhorn-Knopp would hide a collapse.
    """

    def masked_patches(out: dict[str, Array], batch: Batch) -> dict[str, Array]:
        if "ibot" not in out:
            return {}
        probs = jax.nn.softmax(out["ibot"] / health.TEMPERATURE)
        return {"ibot_probs": probs, "ibot_valid": batch["mask_weights"].reshape(-1) > 0}

    def measure(state: TrainState, batch: Batch) -> dict[str, Array]:
        out, _ = teacher_outputs(networks, state.teacher, batch, state.stats("teacher"))
        views = out["cls"].shape[1]
        return health.measure(
            cls=out["cls"][:, 0],
            patches=out["patches"][::views],
            student=state.student,
            teacher=state.teacher,
            dino_probs=jax.nn.softmax(out["dino"] / health.TEMPERATURE),
            **masked_patches(out, batch),
        )

    return measure
