"""The loop: build, restore or initialise, step, log, save, snapshot, evaluate; phase after phase."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import build, checkpoint, health, memory, report, sharding
from dino_jax import state as states
from dino_jax.data.augment import augment
from dino_jax.data.bad_images import BadImages
from dino_jax.data.pipeline import train_batches
from dino_jax.data.sources import Source, open_source
from dino_jax.flops import train_flops_per_image
from dino_jax.guard import Guard
from dino_jax.metrics import NOTHING_RESTORED, MetricsWriter
from dino_jax.phases import Phase, check_batch, in_order
from dino_jax.progress import Progress, Throughput
from dino_jax.state import TrainState
from dino_jax.step import make_health_step
from dino_jax.stop import StopRequest
from dino_jax.validate import validate
from dino_jax.workdir import Workdir

# What only the host needs of a batch.
HOST_ONLY = ("labels", "ids", "replaced")


def run(config: ConfigDict, folder: str | Path) -> dict[str, float]:
    """Runs all phases of a configuration in a workdir, continuing where an earlier process stopped.

    Returns:
      What results.json holds, or an empty dict when the run was asked to stop before its end.

    Raises:
      ValueError: in one line, for anything wrong with the configuration, the data or the workdir.
      FloatingPointError: after `nonfinite_limit` skipped updates in a row.
    """
    validate(config)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    shards = sharding.data_shards(mesh)
    for phase in in_order(config):
        check_batch(phase, shards)
    networks = build.networks(config, shards=shards)
    memory.check(config, networks, mesh)
    source, held_out = open_sources(config)
    with Workdir(folder) as workdir, StopRequest() as stop:
        workdir.adopt(config)
        return Trainer(config, workdir, mesh, networks, source, held_out, stop).run()


def open_sources(config: ConfigDict) -> tuple[Source, Source | None]:
    """Opens the training images and the labelled held-out ones, None if there are none."""
    data = config.data
    windows = {"window_size": data.window_size, "windows_per_photograph": data.windows_per_photograph}
    source = open_source(data.source, data.path, split="train", **windows)
    if data.source == "packaged":
        return source, open_source(data.source, split="test", **windows)
    return source, open_source(data.source, data.test_path, split="test") if data.test_path else None


class Trainer:
    """One process's run of a configuration in a locked workdir."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        mesh: Mesh,
        networks: states.Networks,
        source: Source,
        held_out: Source | None,
        stop: StopRequest,
    ):
        self.config, self.workdir, self.mesh, self.networks = config, workdir, mesh, networks
        self.source, self.held_out, self.stop = source, held_out, stop
        self.phases = in_order(config)
        self.folder = workdir.path
        self.started = time.monotonic()
        for phase in self.phases:
            self.check_gram_teacher(phase)
        self.checkpoints = checkpoint.Checkpoints(
            self.folder, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every
        )
        self.augment = jax.jit(functools.partial(augment, mean=config.data.mean, std=config.data.std))
        self.key = jax.random.key(config.seed)
        self.history: list[dict[str, float]] = []
        self.bad_images = BadImages(
            self.folder, source, most=config.data.max_bad_share, process_index=jax.process_index()
        )

    def note(self, text: str) -> None:
        """Prints a line for the user, once per run however many processes it has."""
        if jax.process_index() == 0:
            self.progress.note(text) if hasattr(self, "progress") else print(text, flush=True)

    def run(self) -> dict[str, float]:
        """Restores or initialises, runs the remaining phases, evaluates and reports."""
        state = self.checkpoints.restore(self.like, note=self.note)
        resumed = NOTHING_RESTORED if state is None else int(state.step)
        if state is None:
            self.note(f"student and teacher: new, from seed {self.config.seed}")
            state = states.init(
                self.networks, build.optimizer(self.phases[0].options), self.mesh, seed=self.config.seed
            )
        else:
            self.note(f"student, teacher, optimizer: restored from {self.checkpoints.folder / str(resumed)}")
        done = max(resumed, 0)
        self.report = report.Report(self.config, self.networks, self.mesh, self.folder, self.source, self.held_out)
        with MetricsWriter(self.folder, resumed) as self.writer:
            self.progress = Progress(self.phases[-1].last, first_step=done)
            try:
                for phase in self.phases:
                    if done < phase.last:
                        state = self.run_phase(phase, state, resumed)
                        done = int(state.step)
                        self.save(done, state)
                    if self.stop.requested:
                        self.note(f"stopped at step {done}, saved; the same command continues from here")
                        return {}
            finally:
                self.progress.close()
                self.checkpoints.close()
        return self.finish(state)

    def run_phase(self, phase: Phase, state: TrainState, resumed: int) -> TrainState:
        """Trains from where the state is to the phase's end, or to a request to stop."""
        fresh = not phase.first < resumed <= phase.last
        state = self.enter(phase, state, fresh)
        self.iterator = self.batches(phase)
        if not fresh:
            self.checkpoints.restore_data(resumed, self.iterator)
        options, names = phase.options, build.phase_schedules(phase.options)
        where = sharding.of_state(state, self.mesh)
        train_step = jax.jit(
            build.train_step(self.networks, options, seed=self.config.seed),
            donate_argnums=0,
            out_shardings=(where, None, None),
        )
        self.measure = jax.jit(make_health_step(self.networks))
        self.throughput = Throughput(
            flops_per_image=train_flops_per_image(self.networks, options), devices=list(self.mesh.devices.flat)
        )
        guard = Guard(limit=self.config.nonfinite_limit, name=self.source.name, note=self.note)
        try:
            for step, host, batch in self.load(int(state.step), phase.last):
                hyper = build.hyper(names, step - phase.first)
                state, metrics, finite = train_step(state, batch, hyper)
                guard.watch(step + 1, metrics, finite, host["ids"])
                state = self.after_step(phase, step + 1, state, batch, metrics | _logged(hyper))
                if self.stop.requested:
                    break
            guard.flush()
        finally:
            self.iterator.close()
        return state

    def enter(self, phase: Phase, state: TrainState, fresh: bool) -> TrainState:
        """Gives a phase its Gram teacher and says which networks it runs with."""
        gram = phase.options.gram.teacher
        if fresh and not phase.gram:
            state = states.with_gram_teacher(state, None)
        elif fresh and gram == "ema":
            state = states.with_gram_teacher(state, state.teacher["backbone"])
            self.snapshot(phase.first, state)
        elif fresh:
            like = _with_sharding(jax.eval_shape(lambda: state.teacher["backbone"]), self.mesh)
            state = states.with_gram_teacher(state, checkpoint.restore_snapshot(self.gram_folder(phase), like))
        self.note(f"phase {phase.name}: steps {phase.first} to {phase.last}; {phase.describe_gram(int(state.step))}")
        return state

    def check_gram_teacher(self, phase: Phase) -> None:
        """Raises ValueError when a phase's snapshot is missing; one that this run will save is none of its business."""
        teacher = phase.options.gram.teacher
        if teacher not in ("none", "ema") and not teacher.startswith("gram_teacher/"):
            checkpoint.check_snapshot(self.gram_folder(phase))

    def gram_folder(self, phase: Phase) -> Path:
        """Returns a snapshot's folder; `gram_teacher/<step>` is one of this run's own."""
        teacher = Path(phase.options.gram.teacher).expanduser()
        return self.folder / teacher if teacher.parts[0] == "gram_teacher" else teacher

    def batches(self, phase: Phase) -> Any:
        """Opens the phase's training batches, this process's part of them."""
        p = phase.options
        return train_batches(
            self.source,
            batch_size=p.batch_size,
            seed=self.config.seed * 1000 + phase.index,
            global_size=p.crops.global_size,
            global_scale=tuple(p.crops.global_scale),
            local_size=p.crops.local_size,
            local_scale=tuple(p.crops.local_scale),
            local_number=p.crops.local_number,
            horizontal_flips=p.crops.horizontal_flips,
            gram_size=p.gram.crop_size if phase.gram else 0,
            patch_size=self.config.model.patch_size,
            mask_ratio=tuple(p.masks.ratio),
            mask_probability=p.masks.probability,
            mask_group_size=p.masks.group_size,
            workers=self.config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def load(self, step: int, last: int) -> Iterator[tuple[int, dict[str, np.ndarray], dict[str, jax.Array]]]:
        """Yields (step, what the host needs, augmented crops on the devices).

        Steps are dispatched asynchronously, so that the host prepares a batch while the devices work on the one before.
        """
        for current in range(step, last):
            with self.throughput.waiting():
                batch = next(self.iterator)
            host = {name: batch.pop(name) for name in HOST_ONLY}
            self.bad_images.update(host["replaced"])
            arrays = sharding.place(batch, self.mesh)
            yield current, host, self.augment(jax.random.fold_in(self.key, current), arrays)

    def after_step(
        self, phase: Phase, step: int, state: TrainState, batch: dict[str, jax.Array], metrics: dict[str, Any]
    ) -> TrainState:
        """Refreshes the Gram teacher, logs, evaluates, saves: whatever is due after `step` completed steps."""
        config, last = self.config, step == phase.last
        if phase.last_refresh(step) == step:
            state = states.with_gram_teacher(state, state.teacher["backbone"])
            self.snapshot(step, state)
            following = phase.next_refresh(step)
            when = f"next at step {following}" if following else "the last time"
            self.note(f"step {step}: Gram teacher refreshed from the EMA teacher, {when}")
        if step - phase.first in phase.options.snapshot_steps:
            self.snapshot(step, state)
        healthy = step % config.log.health_every == 0 or last
        evaluated = bool(config.knn.every) and step % config.knn.every == 0
        if step % config.log.every == 0 or last or healthy or evaluated:
            jax.block_until_ready(metrics)
            self.throughput.add(phase.options.batch_size)
            with self.throughput.paused():
                if healthy:
                    metrics |= self.measure(state, batch)
                if evaluated:
                    metrics |= self.report.knn_of(state.teacher["backbone"], "knn/teacher")
                self.log(phase, step, {name: float(value) for name, value in metrics.items()}, healthy)
        else:
            self.throughput.add(phase.options.batch_size)
        if step % config.checkpoint.every == 0:
            with self.throughput.paused():
                self.save(step, state)
        return state

    def log(self, phase: Phase, step: int, metrics: dict[str, float], healthy: bool) -> None:
        """Writes a record and shows it; after a measurement of health, says what looks wrong."""
        self.writer.write(step, metrics)
        speed = self.throughput.read()
        if speed:
            self.writer.write_throughput(step, speed)
        self.progress.update(step, phase=phase.name, loss=metrics["loss/total"], throughput=speed)
        if healthy:
            self.history.append({"step": step} | metrics | speed)
            warmup = phase.first + phase.options.schedules.lr.warmup
            for words in health.diagnose(self.history[-1], self.history[:-1], warmup_steps=warmup):
                self.note(f"step {step}: {words}")

    def like(self, step: int) -> TrainState:
        """Returns shapes, dtypes and shardings of the state saved after `step` steps."""
        phase = next(p for p in self.phases if p.first < step <= p.last)
        shapes = states.abstract(self.networks, build.optimizer(phase.options), gram=phase.gram)
        return _with_sharding(shapes, self.mesh)

    def save(self, step: int, state: TrainState) -> None:
        """Starts to save a checkpoint."""
        self.checkpoints.save(step, state, self.iterator)

    def snapshot(self, step: int, state: TrainState) -> None:
        """Saves the teacher's backbone as a Gram-teacher snapshot."""
        folder = self.folder / "gram_teacher" / str(step)
        checkpoint.save_snapshot(folder, state.teacher["backbone"])
        self.note(f"step {step}: teacher saved as Gram snapshot {folder}")

    def finish(self, state: TrainState) -> dict[str, float]:
        """Evaluates the finished run, draws its pictures and writes results.json."""
        results = self.report.finish(state, seconds=time.monotonic() - self.started)
        self.workdir.write_results(results)
        return results


def _with_sharding(shapes: Any, mesh: Mesh) -> Any:
    where = sharding.of_state(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def _logged(hyper: dict[str, np.float32]) -> dict[str, np.float32]:
    return {f"schedule/{name}": value for name, value in hyper.items()}
