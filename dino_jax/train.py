"""The loop: build, restore or initialise, step, record, save; phase after phase."""

import contextlib
import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import agreement, build, initial, memory, sharding
from dino_jax import state as states
from dino_jax.checkpoint import Checkpoints, with_sharding
from dino_jax.data.augment import augment
from dino_jax.data.bad_images import BadImages
from dino_jax.data.pipeline import TrainBatches
from dino_jax.data.reading import darkness
from dino_jax.data.sources import Source
from dino_jax.data.statistics import channel_statistics
from dino_jax.data.subset import part_of
from dino_jax.data.whole import is_complete
from dino_jax.gram_teacher import GramTeachers, restore_snapshot
from dino_jax.guard import Guard
from dino_jax.metrics import NOTHING_RESTORED
from dino_jax.phases import Phase, check_batch, in_order
from dino_jax.progress import Progress
from dino_jax.recipe import flatten, naming
from dino_jax.record import Recorder
from dino_jax.report import Report
from dino_jax.scores import Scores
from dino_jax.state import Networks, Params, TrainState
from dino_jax.stop import StopRequest
from dino_jax.validate import validate
from dino_jax.workdir import IMAGES_COMPARED, PLACES, Workdir

# Entries of a batch that only the host needs.
HOST_ONLY = ("labels", "ids", "replaced")


def run(config: ConfigDict, folder: str | Path) -> dict[str, float]:
    """Runs all phases of a configuration in a workdir, continuing where an earlier process stopped.

    Returns:
      What results.json holds, or an empty dict when the run was asked to stop before its end.

    Raises:
      ValueError: in one line, for anything wrong with the configuration, the data or the workdir.
      OSError: in one line, when something cannot be written.
      FloatingPointError: after `nonfinite_limit` skipped updates in a row.
    """
    validate(config)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    shards = sharding.data_shards(mesh)
    for phase in in_order(config):
        check_batch(phase, shards)
    networks = build.networks(config, shards=shards)
    memory.check(config, networks, mesh)
    source, held_out = build.sources(config)
    voters, judged = build.evaluated(config, source, held_out)
    networks = build.with_attention(networks, config, mesh.local_devices[0])
    kernel = {"the kernel of model.attention (xla runs everywhere)": getattr(networks.backbone, "attention", "")}
    seen = images("training", source) | images("voting", voters) | images("held-out", judged)
    agreement.check(settings(config) | kernel | seen)
    check_channels(config, source)
    if config.init.weights and not (Path(folder).expanduser() / "config.json").exists():
        initial.check_path(config.init.weights)  # before the workdir takes the value on
    with Workdir(folder) as workdir, StopRequest() as stop:
        agreement.check_shared(workdir.path / ".shared")
        changed = workdir.adopt(config)
        workdir.adopt_images(len(source), source.name)
        if jax.process_index() == 0:
            if changed:
                print(f"settings changed for phases that have not started: {changed}", file=sys.stderr)
            print(f"{len(source):,} training images", file=sys.stderr)
            if config.data.homogeneous_share and not config.data.homogeneous_path:
                print("no data.homogeneous_path: all batches are of the images of data.path", file=sys.stderr)
            if dark := darkness(source, config.data.mean):
                print(f"data.path: {dark}", file=sys.stderr)
        shown = held_out or source
        return Trainer(config, workdir, mesh, networks, source, (voters, judged, shown), stop).run()


def settings(config: ConfigDict) -> dict[str, Any]:
    """Returns what all processes must agree on: the recipe without `PLACES`."""
    return {key: value for key, value in flatten(config).items() if key not in PLACES}


def images(kind: str, source: Source | None) -> dict[str, Any]:
    """Returns what all processes must agree on of images: their number, the names of some, and the classes."""
    if source is None:
        return {f"the {kind} images": None}
    some = part_of(source, IMAGES_COMPARED)
    names = [some.name(index) for index in range(len(some))]
    return {f"the {kind} images": (len(source), names, source.class_names)}


def check_channels(config: ConfigDict, source: Source) -> None:
    """Raises ValueError, with the statistics of the images, unless there is a mean and a deviation of each channel."""
    data, channels = config.data, config.model.in_channels
    if len(data.mean) == len(data.std) == channels:
        return
    with naming("data.path"):
        statistics = channel_statistics(source)
    mean, std = (",".join(f"{value:.4g}" for value in values) for values in statistics)
    raise ValueError(
        f"data.mean has {len(data.mean)} values and data.std {len(data.std)} for model.in_channels = {channels}: these "
        f"images have --config.data.mean={mean} --config.data.std={std}"
    )


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The step of the checkpoint that a run continues from, and the state of its data."""

    step: int
    data: dict[str, Any]


class Trainer:
    """One process's run of a configuration in a locked workdir."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        mesh: Mesh,
        networks: Networks,
        source: Source,
        evaluated: tuple[Source, Source | None, Source],
        stop: StopRequest,
    ):
        """Takes what `run` has opened; `evaluated` are the images of `build.evaluated`, and those that are shown."""
        self.config, self.workdir, self.mesh, self.networks = config, workdir, mesh, networks
        self.source, self.stop = source, stop
        self.phases, self.centered = in_order(config), build.centered(config)
        self.started, self.seconds_before = time.monotonic(), 0.0
        self.progress = Progress(self.phases[-1].last)
        voters, judged, shown = evaluated
        self.scores = Scores(config, networks, mesh, voters, judged, shown=shown, interrupted=stop.waits)
        agreement.check({"the images and masks at eval.dense.path": self.scores.dense_checksum()})
        self.report = Report(config, self.scores, mesh, workdir.path, shown, self.first_backbone)
        dense_score = self.scores.of_snapshot if config.eval.dense.path else None
        self.gram = GramTeachers(workdir.path, mesh, self.progress.note, dense_score)
        options = {"mean": config.data.mean, "std": config.data.std, "dtype": config.precision}
        self.augment = jax.jit(functools.partial(augment, **options))
        self.key = jax.random.key(config.seed)
        self.bad_images = BadImages(
            workdir.path,
            source,
            most=config.data.max_bad_share,
            process_index=jax.process_index(),
            note=self.progress.note,
        )

    def run(self) -> dict[str, float]:
        """Restores or initialises, runs the remaining phases, evaluates and reports."""
        keep = {"keep_last": self.config.checkpoint.keep_last, "keep_every": self.config.checkpoint.keep_every}
        stopped = False
        with Checkpoints(self.workdir.path, **keep) as checkpoints:
            state, resumed = self.restore(checkpoints)
            if int(state.step) < self.phases[-1].last:
                self.workdir.forget_results()  # of a run that was finished, and has been given more phases
            with self.recorder(resumed) as record:
                if resumed and "record" in resumed.data:
                    ended = next(phase for phase in self.phases if phase.first < resumed.step <= phase.last)
                    words = "stopped in an evaluation, all steps are saved: run the same command to continue"
                    alone = jax.process_count() == 1  # or JAX could not catch signals any more
                    with self.stop.at_once(words) if alone else contextlib.nullcontext():
                        record.finish(ended, resumed.step, state, resumed.data["record"])
                for phase in self.phases:
                    if int(state.step) < phase.last and not stopped:
                        # Nothing but `state` holds a state, so that a Gram teacher that is replaced is freed.
                        state, batches = self.enter(phase, state, resumed)
                        state, stopped = self.run_phase(phase, state, batches, checkpoints, record)
        if stopped:
            self.progress.note(f"stopped after step {int(state.step)}, saved: run the same command to continue")
            return {}
        with self.stop.at_once("stopped in the evaluation, all steps are saved: run the same command to evaluate"):
            results = self.report.finish(state, seconds=self.seconds)
        self.workdir.write_results(results)
        return results

    def seconds(self) -> float:
        """Returns how long the run has taken so far, in all its processes; what was trained twice counts once."""
        return self.seconds_before + time.monotonic() - self.started

    def run_phase(
        self,
        phase: Phase,
        state: TrainState,
        batches: TrainBatches,
        checkpoints: Checkpoints,
        record: Recorder,
    ) -> tuple[TrainState, bool]:
        """Trains from where the state is to the phase's end; the second result says that it was asked to stop."""
        schedules, train_step = build.phase_schedules(phase.options), self.compiled_step(phase, state)
        guard = Guard(limit=self.config.nonfinite_limit, name=self.source.name, note=self.progress.note)
        record.enter(phase)
        metrics: dict[str, Array] = {}
        with contextlib.closing(batches):
            for step in range(int(state.step) + 1, phase.last + 1):
                with record.throughput.waiting(metrics.get("loss/total")):
                    host = next(batches)
                ids, batch = self.to_devices(step, host)
                hyper = build.hyper(schedules, step - 1 - phase.first)
                state, metrics, finite = train_step(state, batch, hyper)
                guard.watch(step, metrics, finite, ids)
                if self.gram.due(phase, step):
                    guard.flush()
                    with record.throughput.paused():
                        state = self.gram.after_step(phase, step, state)
                record.after_step(phase, step, state, batch, metrics, hyper)
                stopped, saved = self.stop.now(), False
                # An evaluation may outlast the notice that a machine gets before it is taken away.
                if stopped or step == phase.last or step % self.config.checkpoint.every == 0:
                    self.save(checkpoints, step, state, batches, record, guard)
                    saved = True
                if not stopped and not record.evaluate(phase, step, state):
                    stopped = True
                    if not saved:
                        self.save(checkpoints, step, state, batches, record, guard)
                if stopped:
                    break
        return state, stopped

    def save(
        self,
        checkpoints: Checkpoints,
        step: int,
        state: TrainState,
        batches: TrainBatches,
        record: Recorder,
        guard: Guard,
    ) -> None:
        """Saves all that is needed to continue after `step` completed steps."""
        guard.flush()
        with record.throughput.paused():
            record.sync()  # or a machine that goes down could leave a checkpoint without them
            position = batches.get_state() | {"seconds": self.seconds()} | record.unfinished()
            checkpoints.save(step, state, position)

    def restore(self, checkpoints: Checkpoints) -> tuple[TrainState, Resumed | None]:
        """Restores the newest good checkpoint and says so, or initialises."""

        def like(step: int) -> TrainState:
            phase = next((p for p in self.phases if p.first < step <= p.last), self.phases[-1])
            optimizer = build.optimizer(phase.options)
            shapes = states.abstract(self.networks, optimizer, gram=phase.gram, centered=self.centered)
            return with_sharding(shapes, self.mesh)

        self.gram.check(self.phases, done=next(iter(checkpoints.steps()), 0), like=self.backbone_like)
        restored = checkpoints.restore(like, note=self.progress.note)
        if restored is None:
            self.workdir.check_new()
            self.gram.forget_scores(after=0)
            return self.initialise(), None
        self.gram.forget_scores(after=restored.step)
        self.seconds_before = restored.data.get("seconds", 0.0)
        self.progress.note(f"student, teacher, heads and optimizer: from {checkpoints.folder / str(restored.step)}")
        return restored.state, Resumed(restored.step, restored.data)

    def initialise(self) -> TrainState:
        """Draws a new state, with the backbone of `init.weights` if that is given."""
        seed, weights = self.config.seed, self.config.init.weights
        optimizer = build.optimizer(self.phases[0].options)
        state = states.init(self.networks, optimizer, self.mesh, seed=seed, centered=self.centered)
        if not weights:
            self.progress.note(f"student and heads: new, from seed {seed}; teacher: a copy of them")
            return state
        # Kept, so that neither a restart nor the final comparison needs the original file.
        kept = self.gram.snapshot_folder(0)
        if self.workdir.begun() and is_complete(kept):
            backbone = self.first_backbone()
            self.progress.note(f"student and teacher: from {kept}, a copy of {weights}; heads: new, from seed {seed}")
            return states.with_backbone(state, backbone)
        from dino_jax.pretrained import load_on_host  # with it come readers of many formats, which other runs need not

        statistics = tuple(self.config.data.mean), tuple(self.config.data.std)
        backbone = initial.loaded(weights, self.networks, self.mesh, load=load_on_host, statistics=statistics)
        state = states.with_backbone(state, backbone)
        self.progress.note(f"student and teacher: from {weights}; heads: new, from seed {seed}")
        self.gram.snapshot(0, state)
        return state

    def first_backbone(self) -> Params:
        """Returns the backbone with which the run began."""
        if not self.config.init.weights:
            return initial.drawn(self.networks, self.mesh, seed=self.config.seed)
        folder = self.gram.snapshot_folder(0)
        if not is_complete(folder):
            raise ValueError(f"the copy of init.weights in {folder} is gone: restore it")
        return restore_snapshot(folder, self.backbone_like())

    def backbone_like(self) -> Any:
        """Returns shapes, dtypes and shardings of a backbone's weights."""
        shapes = jax.eval_shape(self.networks.backbone_weights, jax.random.key(0))
        return with_sharding(shapes, self.mesh)

    def recorder(self, resumed: Resumed | None) -> Recorder:
        """Opens the record of the run where the restored state continues it."""
        return Recorder(
            self.config,
            self.networks,
            self.mesh,
            self.scores,
            self.progress,
            workdir=self.workdir.path,
            resume_step=resumed.step if resumed else NOTHING_RESTORED,
            first_backbone=self.first_backbone,
        )

    def enter(self, phase: Phase, state: TrainState, resumed: Resumed | None) -> tuple[TrainState, TrainBatches]:
        """Begins or continues a phase: its Gram teacher and its batches, in words too."""
        batches = build.batches(self.config, phase, self.source)
        if resumed and phase.first < resumed.step < phase.last:
            batches.set_state(resumed.data)
        else:
            state = self.gram.enter(phase, state)
        done = int(state.step)
        words = self.gram.describe(phase, done) + phase.describe_sizes()
        self.progress.note(f"phase {phase.name}: steps {done + 1} to {phase.last}; {words}; compiling its step")
        return state, batches

    def compiled_step(self, phase: Phase, state: TrainState) -> Any:
        """Jits the phase's step, which updates its state in place."""
        where = sharding.of_state(state, self.mesh)
        step = build.train_step(self.networks, phase.options, seed=self.config.seed)
        return jax.jit(step, donate_argnums=0, out_shardings=(where, None, sharding.batch(self.mesh)))

    def to_devices(self, step: int, host: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Array]]:
        """Moves a batch to the devices and augments it there; returns (sample ids, batch).

        All of this is dispatched asynchronously: the host prepares a batch while the devices work on the one before.
        """
        self.bad_images.update(host["replaced"], host["ids"])
        arrays = sharding.place({name: x for name, x in host.items() if name not in HOST_ONLY}, self.mesh)
        return host["ids"], self.augment(self.key, np.int32(step - 1), arrays)
