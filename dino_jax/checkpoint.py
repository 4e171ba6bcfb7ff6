"""Saves and restores a run's progress through Orbax: the train state, and where its data had got to."""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dino_jax import sharding
from dino_jax.checksum import check, checksums
from dino_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the state after `step` steps, and the state of the data iterator at that moment."""

    step: int
    state: TrainState
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, written asynchronously and atomically under `<workdir>/checkpoints/<step>`.

    Orbax itself does not notice bytes that changed in a stored array, hence the checksums beside them.
    """

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
        self._saving = 0
        with self._worded():
            self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.folder.resolve(), options=self._options)

    def steps(self) -> list[int]:
        """Lists the saved steps, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts to save; returns once the arrays are copied. A save still under way is waited for.

        Args:
          data: state of the data iterator, as JSON can hold it; the same in every process.

        Raises:
          OSError: when this save or the one before cannot be written.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(sealed(state)), data=ocp.args.JsonSave({"data": data}))
        with self._worded():
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=items, force=True)

    def restore(self, like: Callable[[int], TrainState], *, note: Callable[[str], None]) -> Restored | None:
        """Restores the newest good checkpoint; damaged ones are reported and moved out of the way.

        Args:
          like: gives, for a step, the shapes, dtypes and shardings of its state.
          note: takes a line for the user.

        Returns:
          None when there is no checkpoint yet.

        Raises:
          ValueError: when there are checkpoints but none can be read.
        """
        steps = self.steps()
        for step in steps:
            restored, problem = self._attempt(step, like(step))
            if restored is not None:
                return restored
            note(f"checkpoint {step} is damaged ({problem}): moved to {self._damaged}/{step}, trying the one before")
            self._set_aside(step)
        if steps:
            raise ValueError(
                f"none of the {len(steps)} checkpoints can be read, all are now in {self._damaged}: "
                "the same command starts the run anew"
            )
        return None

    def _attempt(self, step: int, like: TrainState) -> tuple[Restored | None, str]:
        """Reads a checkpoint; where one process cannot, all of them give it up. The second result says why."""
        restored, problem = None, "another process cannot read it"
        args = ocp.args.Composite(state=ocp.args.StandardRestore(sealed_like(like)), data=ocp.args.JsonRestore())
        try:
            with silent("absl", "root"):
                items = self._manager.restore(step, args=args)
            state = opened(items.state)
            if int(state.step) != step:
                raise ValueError(f"it holds step {int(state.step)}")
            restored = Restored(step, state, items.data["data"])
        except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
            problem = reason(error)
        if jax.process_count() > 1 and not multihost_utils.process_allgather(np.bool_(restored is not None)).all():
            return None, problem
        return restored, problem

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint away, as Orbax would neither overwrite it nor save an earlier step beside it."""
        self._manager.close()
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target = self._damaged / str(step)
            shutil.rmtree(target, ignore_errors=True)
            (self.folder / str(step)).rename(target)
        multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
        self._manager = self._open()

    @contextlib.contextmanager
    def _worded(self) -> Iterator[None]:
        """Turns what goes wrong inside into one line; a failed asynchronous save shows up at the next call."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore have an exception of their own for every layer
            kept = f"checkpoint {max(self._committed())} is kept" if self._committed() else "there is none before it"
            raise OSError(
                f"checkpoint {self._saving} cannot be written to {self.folder}: {reason(error)}; {kept}: "
                "free space, then run the same command"
            ) from error

    def _committed(self) -> list[int]:
        return [int(p.name) for p in self.folder.glob("*") if p.name.isdecimal() and int(p.name) != self._saving]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Waits for saves under way; an error that is already on its way to the user is not covered up by theirs."""
        with contextlib.suppress(Exception) if kind else self._worded():
            self._manager.close()


def sealed(tree: Any) -> dict[str, Any]:
    """Puts the checksums of a tree of arrays beside it, for saving."""
    return {"content": tree, "checksums": checksums(tree)}


def sealed_like(like: Any) -> dict[str, Any]:
    """Returns what `sealed` would, for a tree of shapes, dtypes and shardings."""

    def scalar(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), np.uint32, sharding=sharding.replicated(x.sharding.mesh))

    return {"content": like, "checksums": jax.tree.map(scalar, like)}


def opened(restored: dict[str, Any]) -> Any:
    """Returns the tree inside of what `sealed` gave; raises ValueError when it is not what was saved."""
    check(restored["content"], restored["checksums"])
    return restored["content"]


def with_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Adds to a tree of shapes where its arrays belong on a mesh."""
    where = sharding.of_state(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def reason(error: BaseException) -> str:
    """Returns the telling part of an error of Orbax or TensorStore, which run over many lines."""
    text = " ".join(str(error).split()) or type(error).__name__
    for known in ("No space left on device", "File too large", "Disk quota exceeded", "Permission denied"):
        if known in text:
            return known.lower()
    return text if len(text) <= 160 else f"{text[:160]} ..."


@contextlib.contextmanager
def silent(*loggers: str) -> Iterator[None]:
    """Keeps what other packages log out of a user's sight while their errors are handled here."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
