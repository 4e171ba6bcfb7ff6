"""The Gram teacher of each phase (DINOv3, section 4.2): where it comes from, when it changes, its snapshots on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from dino_jax import checkpoint
from dino_jax.checksum import opened, sealed, sealed_like
from dino_jax.phases import Phase
from dino_jax.state import Params, TrainState, with_gram_teacher


class GramTeachers:
    """Gives each phase its Gram teacher and keeps the run's snapshots in `<workdir>/gram_teacher/<step>`."""

    def __init__(self, workdir: Path, mesh: Mesh, note: Callable[[str], None]):
        """Takes the run's folder and mesh, and what shows a line to the user."""
        self.workdir, self.mesh, self.note = workdir, mesh, note

    def check(self, phases: Sequence[Phase], done: int) -> None:
        """Makes sure that the snapshots exist which phases after `done` steps begin with.

        Raises:
          ValueError: when one is missing; those that this run is yet to save are not.
        """
        for phase in phases:
            own = phase.own_snapshot
            entered, yet_to_come = phase.first < done, own is not None and own > done
            if phase.options.gram.teacher not in ("none", "ema") and not entered and not yet_to_come:
                check_snapshot(self.folder(phase))

    def folder(self, phase: Phase) -> Path:
        """Returns the folder of the snapshot that a phase begins with."""
        own = phase.own_snapshot is not None
        return self.workdir / phase.options.gram.teacher if own else Path(phase.options.gram.teacher).expanduser()

    def enter(self, phase: Phase, state: TrainState) -> TrainState:
        """Returns the state with which a phase begins: with its own Gram teacher, or none."""
        if not phase.gram:
            return with_gram_teacher(state, None)
        if phase.options.gram.teacher == "ema":
            self.snapshot(phase.first, state)
            return with_gram_teacher(state, state.teacher["backbone"])
        shapes = jax.eval_shape(lambda: state.teacher["backbone"])
        like = checkpoint.with_sharding(shapes, self.mesh)
        return with_gram_teacher(state, restore_snapshot(self.folder(phase), like))

    def after_step(self, phase: Phase, step: int, state: TrainState) -> TrainState:
        """Refreshes the Gram teacher and saves snapshots where that is due after `step` completed steps."""
        refreshed = phase.last_refresh(step) == step
        if refreshed or step - phase.first in phase.options.snapshot_steps:
            self.snapshot(step, state)
        if not refreshed:
            return state
        following = phase.next_refresh(step)
        when = f"next at step {following}" if following else "for the last time"
        self.note(f"step {step}: Gram teacher refreshed from the EMA teacher, {when}")
        return with_gram_teacher(state, state.teacher["backbone"])

    def snapshot(self, step: int, state: TrainState) -> None:
        """Saves the teacher's backbone as a Gram-teacher snapshot."""
        folder = self.workdir / "gram_teacher" / str(step)
        save_snapshot(folder, state.teacher["backbone"])
        self.note(f"step {step}: EMA teacher saved as Gram snapshot {folder}")


def save_snapshot(folder: Path, params: Params) -> None:
    """Saves backbone parameters as a Gram-teacher snapshot, atomically; an existing one is replaced.

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
    raise ValueError(
        f"Gram snapshot {folder} cannot be read, it is damaged or of another network ({problem}): "
        "set gram.teacher to another one"
    )


def check_snapshot(folder: Path) -> None:
    """Raises ValueError when there is no snapshot at `folder`, and names those that stand beside it."""
    if (folder / "_CHECKPOINT_METADATA").exists():
        return
    beside = sorted(file.parent.name for file in folder.parent.glob("*/_CHECKPOINT_METADATA"))
    there = f"{folder.parent} holds {', '.join(beside) or 'none'}"
    raise ValueError(f"there is no Gram snapshot at {folder}; {there}: set gram.teacher to one of them, or to 'ema'")
