"""Saves and restores runs through Orbax: the train state with the data iterator, and Gram-teacher snapshots."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from dino_jax.state import Params, TrainState


class Checkpoints:
    """The checkpoints of a run, written asynchronously and atomically under `<workdir>/checkpoints/<step>`."""

    def __init__(self, workdir: Path, *, keep_last: int, keep_every: int):
        """Opens the folder.

        Args:
          keep_last: newest checkpoints that are kept.
          keep_every: checkpoints at multiples of this many steps are kept for ever; 0 keeps none.
        """
        self.folder = workdir / "checkpoints"
        self._damaged = workdir / "damaged_checkpoints"
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.folder.resolve(), options=self._options)

    def steps(self) -> list[int]:
        """Lists the saved steps, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Starts to save; returns once the arrays are copied. A save still under way is waited for."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator))
        self._manager.save(step, args=items, force=True)

    def restore(self, like: Callable[[int], TrainState], *, note: Callable[[str], None]) -> TrainState | None:
        """Restores the newest good state; damaged checkpoints are reported and moved out of the way.

        Args:
          like: gives, for a step, the shapes, dtypes and shardings of its state.
          note: takes a line for the user.

        Returns:
          The state, or None when there is no checkpoint yet.

        Raises:
          ValueError: when there are checkpoints but none can be read.
        """
        steps = self.steps()
        for step in steps:
            try:
                restored = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like(step)))
                )
            except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                note(f"checkpoint {step} is damaged ({reason}); moved to {self._damaged.name}/, trying the one before")
                self._set_aside(step)
            else:
                return restored.state
        if steps:
            raise ValueError(
                f"none of the {len(steps)} checkpoints can be read; they are in {self._damaged}: start in a new workdir"
            )
        return None

    def restore_data(self, step: int, iterator: grain.DatasetIterator) -> None:
        """Sets the data iterator to where it was at a step."""
        self._manager.restore(step, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(iterator)))

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint away, as Orbax would neither overwrite it nor save an earlier step beside it."""
        self._manager.close()
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target = self._damaged / str(step)
            shutil.rmtree(target, ignore_errors=True)
            (self.folder / str(step)).rename(target)
        self._manager = self._open()

    def wait(self) -> None:
        """Waits until every save is on disk; raises what went wrong with one."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way and frees the threads."""
        self._manager.close()


def save_snapshot(folder: Path, params: Params) -> None:
    """Saves backbone parameters as a Gram-teacher snapshot, atomically; an existing one is replaced."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve(), params, force=True)


def restore_snapshot(folder: Path, like: Any) -> Params:
    """Restores backbone parameters from a snapshot of this or another run.

    Args:
      folder: `<workdir>/gram_teacher/<step>`.
      like: shapes, dtypes and shardings of the parameters.

    Raises:
      ValueError: when the snapshot is missing, damaged or of another network.
    """
    check_snapshot(folder)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.resolve(), like)
    except Exception as error:  # whatever a damaged file or another tree makes Orbax or TensorStore raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"Gram snapshot {folder} cannot be read: damaged, or of another network ({reason})") from error


def check_snapshot(folder: Path) -> None:
    """Raises ValueError when there is no snapshot at `folder`, and names those that stand beside it."""
    if (folder / "_CHECKPOINT_METADATA").exists():
        return
    beside = sorted(p.name for p in folder.parent.glob("*")) if folder.parent.is_dir() else []
    there = f"{folder.parent} holds {', '.join(beside)}" if beside else f"{folder.parent} holds none"
    raise ValueError(f"there is no Gram snapshot at {folder}; {there}: set gram.teacher to one of them, or to 'ema'")
