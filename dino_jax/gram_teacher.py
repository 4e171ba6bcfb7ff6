"""The Gram teacher of each phase (DINOv3, section 4.2): where it comes from, when it changes, its snapshots on disk."""

import dataclasses
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from dino_jax import checkpoint, sharding
from dino_jax.checksum import opened, sealed, sealed_like
from dino_jax.data.whole import complete_steps, is_complete, write_json
from dino_jax.phases import Phase
from dino_jax.state import Params, TrainState, teacher_weights, with_gram_teacher


class GramTeachers:
    """Gives each phase its Gram teacher and keeps the run's snapshots in `<workdir>/gram_teacher/<step>`."""

    def __init__(
        self,
        workdir: Path,
        mesh: Mesh,
        note: Callable[[str], None],
        dense_score: Callable[[Params], float] | None = None,
    ):
        """Takes the run's folder and mesh.

        Args:
          note: shows a line to the user.
          dense_score: rates the dense features of a backbone, higher is better.
        """
        self.workdir, self.mesh, self.note, self.dense_score = workdir, mesh, note, dense_score
        self.scores_file = workdir / "gram_teacher" / "scores.json"
        self._scores: dict[int, float] | None = None  # of this process: others might see the file late

    def check(self, phases: Sequence[Phase], done: int, like: Callable[[], Any]) -> None:
        """Checks that every snapshot needed by a phase that has not started exists and fits this network.

        Args:
          done: steps taken so far.
          like: returns the shapes of the backbone's parameters.

        Raises:
          ValueError: when one is not; those that this run is yet to save are left out.
        """
        for phase in phases:
            own = phase.own_snapshot
            entered, yet_to_come = phase.first < done, own is not None and (own > done or not done)
            if phase.options.gram.teacher not in ("none", "ema", "best_dense") and not entered and not yet_to_come:
                check_snapshot(self.folder(phase))
                check_shapes(self.folder(phase), like())

    def folder(self, phase: Phase) -> Path:
        """Returns the folder of the snapshot that a phase begins with."""
        if phase.options.gram.teacher == "best_dense":
            return self.snapshot_folder(self.best_dense(phase.first)[0])
        own = phase.own_snapshot
        return Path(phase.options.gram.teacher).expanduser() if own is None else self.snapshot_folder(own)

    def snapshot_folder(self, step: int) -> Path:
        """Returns where the run keeps the teacher of a step."""
        return self.workdir / "gram_teacher" / str(step)

    def enter(self, phase: Phase, state: TrainState) -> TrainState:
        """Returns the state with which a phase begins: with its own Gram teacher, or none."""
        if not phase.gram:
            return with_gram_teacher(state, None)
        if phase.options.gram.teacher == "ema":
            self.snapshot(phase.first, state)
            return with_gram_teacher(state, state.teacher["backbone"])
        if phase.options.gram.teacher == "best_dense":
            self.note(self.explain_choice(phase.first))
        shapes = jax.eval_shape(lambda: state.teacher["backbone"])
        like = checkpoint.with_sharding(shapes, self.mesh)
        return dataclasses.replace(state, gram_teacher=restore_snapshot(self.folder(phase), like))

    def due(self, phase: Phase, step: int) -> bool:
        """Tells whether `after_step` has anything to do."""
        return step in phase.refreshes or phase.snapshot_due(step)

    def after_step(self, phase: Phase, step: int, state: TrainState) -> TrainState:
        """Refreshes the Gram teacher and saves snapshots where that is due after `step` completed steps."""
        refreshed = step in phase.refreshes
        if refreshed or phase.snapshot_due(step):
            self.snapshot(step, state)
        if not refreshed:
            return state
        following = phase.next_refresh(step)
        when = f"next at step {following}" if following else "for the last time"
        self.note(f"step {step}: Gram teacher refreshed from the EMA teacher, {when}")
        return with_gram_teacher(state, state.teacher["backbone"])

    def snapshot(self, step: int, state: TrainState) -> None:
        """Saves the teacher's backbone as a Gram-teacher snapshot."""
        folder = self.snapshot_folder(step)
        weights = teacher_weights(state)
        save_snapshot(folder, weights)
        words = ""
        if self.dense_score is not None:
            score = self.dense_score(weights)
            words = f", dense score {score:.4f}"
            self._keep_scores(self.scores() | {step: score})
        self.note(f"step {step}: EMA teacher saved as Gram snapshot {folder}{words}")

    def scores(self) -> dict[int, float]:
        """Returns the dense score of every snapshot that has one, by step.

        Raises:
          ValueError: when the file that holds them is damaged.
        """
        if self._scores is not None:
            return self._scores
        if not self.scores_file.exists():
            return {}
        try:
            self._scores = {int(s): float(score) for s, score in json.loads(self.scores_file.read_text()).items()}
            return self._scores
        except (ValueError, AttributeError, TypeError):
            raise ValueError(
                f"{self.scores_file} is damaged: delete it and name a snapshot by gram.teacher = gram_teacher/STEP"
            ) from None

    def forget_scores(self, after: int) -> None:
        """Forgets the scores of snapshots of steps that are to be taken again, which may be with other settings."""
        scores = self.scores()
        if scores:
            self._keep_scores({step: score for step, score in scores.items() if step <= after})

    def _keep_scores(self, scores: dict[int, float]) -> None:
        self._scores = scores
        if jax.process_index() == 0:
            write_json(self.scores_file, {str(step): score for step, score in scores.items()})

    def best_dense(self, step: int) -> tuple[int, float]:
        """Returns (step, score) of the snapshot up to `step` whose dense score is highest, the earliest of equals.

        Raises:
          ValueError: when none has a score.
        """
        scores = self._scores_until(step)
        if not scores:
            raise ValueError(
                f"gram.teacher = best_dense: no snapshot up to step {step} has a dense score in {self.scores_file}: "
                "set snapshot_every of an earlier phase and eval.dense.path, in a new workdir"
            )
        best = max(scores, key=lambda taken: scores[taken])
        return best, scores[best]

    def explain_choice(self, step: int) -> str:
        """Says which snapshot is best, and beside what."""
        best, score = self.best_dense(step)
        scores = self._scores_until(step)
        latest = max(scores)
        beside = "the latest" if latest == best else f"the latest, of step {latest}, has {scores[latest]:.4f}"
        return f"best dense features of {len(scores)} snapshots: step {best}, dense score {score:.4f} ({beside})"

    def _scores_until(self, step: int) -> dict[int, float]:
        return {taken: score for taken, score in sorted(self.scores().items()) if taken <= step}

    def describe(self, phase: Phase, step: int) -> str:
        """Says in words which Gram teacher is in use at `step` and when the next one comes."""
        words = f"snapshot {phase.options.gram.teacher}"
        if phase.options.gram.teacher == "best_dense":
            scored = any(taken <= phase.first for taken in self.scores())  # else the checkpoint alone has it
            which = f"of step {self.best_dense(phase.first)[0]}" if scored else "chosen as the phase began"
            words = f"the snapshot {which}, whose dense features are best"
        return phase.describe_gram(step, words)


def save_snapshot(folder: Path, params: Params) -> None:
    """Saves backbone parameters as a Gram-teacher snapshot, atomically; an existing one is removed before.

    Raises:
      OSError: when it cannot be written.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.resolve(), sealed(params), force=True)
    except Exception as error:  # Orbax and TensorStore have an exception of their own for every layer
        raise OSError(
            f"Gram snapshot {folder} cannot be written: {checkpoint.reason(error)}; the last checkpoint is kept: "
            "free space, then run the same command"
        ) from error


def restore_snapshot(folder: Path, like: Any) -> Params:
    """Restores backbone parameters from a snapshot of this or another run.

    Args:
      folder: `<workdir>/gram_teacher/<step>`.
      like: shapes, dtypes and shardings of the parameters.

    Raises:
      ValueError: when the snapshot is missing, damaged or of another network.
    """
    check_snapshot(folder)
    with checkpoint.silent():
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return opened(checkpointer.restore(folder.resolve(), sealed_like(like)))
        except Exception as error:  # whatever a damaged file or another tree makes Orbax or TensorStore raise
            problem = checkpoint.reason(error)
        gc.collect()  # what was abandoned after the error complains now, not later
    raise ValueError(
        f"Gram snapshot {folder} cannot be read, it is damaged or of another network ({problem}): "
        "set gram.teacher to another one"
    )


def check_shapes(folder: Path, like: Any) -> None:
    """Reads what a snapshot says of its arrays.

    Args:
      folder, like: see `restore_snapshot`.

    Raises:
      ValueError: when that is damaged or of another network.
    """
    with checkpoint.silent():
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                there = sharding.shapes_by_path(checkpointer.metadata(folder.resolve()).item_metadata.tree)
        except Exception as error:  # as above
            problem, there = checkpoint.reason(error), None
    if there is None:
        raise ValueError(f"Gram snapshot {folder} cannot be read ({problem}): set gram.teacher to another one")
    here = sharding.shapes_by_path(sealed_like(like))
    for path in sorted({*there, *here}):
        if there.get(path) != here.get(path):
            raise ValueError(
                f"Gram snapshot {folder} is of another network ({path} is {there.get(path, 'absent')} there and "
                f"{here.get(path, 'absent')} here): set gram.teacher to another one"
            )


def check_snapshot(folder: Path) -> None:
    """Raises ValueError when there is no snapshot at `folder`, and names those that stand beside it."""
    if is_complete(folder):
        return
    there = f"{folder.parent} holds {', '.join(map(str, complete_steps(folder.parent))) or 'none'}"
    raise ValueError(f"there is no Gram snapshot at {folder}; {there}: set gram.teacher to one of them, or to 'ema'")
