"""Saves and restores a run's progress through Orbax: the train state, and where its data had got to."""

import contextlib
import dataclasses
import gc
import json
import logging
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from dino_jax import agreement, sharding
from dino_jax.checksum import opened, sealed, sealed_like
from dino_jax.state import TrainState

GOOD, DAMAGED, UNREADABLE = range(3)  # of a checkpoint, for a process
# Parts of messages that blame the machine, not the checkpoint; most come from TensorStore and XLA, as text.
OF_THE_MACHINE = (
    *("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Permission denied"),
    *("Input/output error", "Too many open files", "Stale file handle", "Cannot allocate memory"),
)
# Parts of messages that mean that another process has ended.
LOST_EACH_OTHER = (
    *("Gloo", "coordination service", "DEADLINE_EXCEEDED", "Connection closed by peer", "Connection reset"),
    "Timed out while waiting for async_",
)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the state after `step` steps, and the state of the data iterator at that moment."""

    step: int
    state: TrainState
    data: dict[str, Any]


class Manager(ocp.CheckpointManager):
    """Orbax's manager without its own check for preemption, which is the run's business (`stop`).

    Orbax would ask JAX with the step of a save that has ended, after the run has asked for a later one: processes might
    then stop after different steps.
    """

    def reached_preemption(self, step: int) -> bool:
        """Returns False; every save is asked for."""
        return False


def barrier(*, key: str, timeout_ms: int) -> None:
    """Waits for all processes, unless an exception is on its way: this process must report that at once, not time out.

    Orbax calls this after a save that failed here, too, when the others are still waiting for this process to write.
    """
    if sys.exc_info()[0] is None:
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


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
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(barrier_sync_fn=barrier),
        )
        self._saving = 0
        try:
            self._manager = self._open()
        except Exception as error:  # as below
            raise OSError(f"{self.folder} cannot be opened: {reason(error)}") from error

    def _open(self) -> ocp.CheckpointManager:
        return Manager(self.folder.resolve(), options=self._options)

    def steps(self) -> list[int]:
        """Lists the saved steps, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts to save; returns once the arrays are copied. A save still under way is waited for.

        Args:
          data: state of the data iterator, as JSON can hold it; that of the first process is stored.

        Raises:
          OSError: when this save or the one before cannot be written.
        """
        if step in self._manager.all_steps():
            return
        position = {"data": data, "crc32": _crc32(data)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(sealed(state)), data=ocp.args.JsonSave(position))
        with self._worded():
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=items, force=True)

    def _agreed_steps(self) -> list[int]:
        """Lists the saved steps once all processes see the same; a network file system may show some to one only.

        Raises:
          OSError: when they do not for a minute.
        """
        for _ in range(int(agreement.PATIENCE)):
            steps = self.steps()
            if jax.process_count() == 1:
                return steps
            everywhere = multihost_utils.process_allgather(np.uint32(zlib.crc32(repr(steps).encode())))
            if (everywhere == everywhere[0]).all():
                return steps
            time.sleep(1)
            self._manager.reload()
        raise OSError(f"the processes see different checkpoints in {self.folder}: run the same command again")

    def restore(self, like: Callable[[int], TrainState], *, note: Callable[[str], None]) -> Restored | None:
        """Restores the newest good checkpoint; damaged ones are reported and moved out of the way.

        Args:
          like: gives, for a step, the shapes, dtypes and shardings of its state.
          note: takes a line for the user.

        Returns:
          None when there is no checkpoint yet.

        Raises:
          ValueError: when there are checkpoints but none can be read; all of them then stay where they are.
          OSError: when the machine does not let one be read.
        """
        damaged: dict[int, str] = {}
        for step in self._agreed_steps():
            restored, problem = self._attempt(step, like(step))
            if restored is not None:
                self._set_aside(damaged, note)
                return restored
            damaged[step] = problem
        if damaged:
            step, problem = next(iter(damaged.items()))
            raise ValueError(
                f"none of the {len(damaged)} checkpoints in {self.folder} can be read ({step}: {problem}): "
                "repair them, or move them away to start anew"
            )
        return None

    def _attempt(self, step: int, like: TrainState) -> tuple[Restored | None, str]:
        """Reads a checkpoint; where one process cannot, all of them give up. The second result says why.

        Raises:
          OSError: when it may be good, but the machine does not let it be read.
        """
        read, problem = None, "another process cannot read it"
        with silent():
            try:
                read = _read(self.folder.resolve() / str(step), like)
                status = GOOD
            except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
                problem = reason(error)
                status = UNREADABLE if any(words in str(error) for words in OF_THE_MACHINE) else DAMAGED
            if read is None:
                gc.collect()  # what was abandoned after the error complains now, not later
        if jax.process_count() > 1:
            status = int(multihost_utils.process_allgather(np.int32(status)).max())
        if status == UNREADABLE:
            raise OSError(
                f"checkpoint {step} in {self.folder} cannot be read now ({problem}): fix that and run the same "
                "command, or move it away to continue from the one before"
            )
        if status == DAMAGED or read is None:
            return None, problem
        try:  # the checksums, which all processes compute together, once all of them have read their parts
            restored = Restored(step, opened(read[0]), read[1])
            if int(restored.state.step) != step:
                raise ValueError("it is not what was saved at this step")
        except ValueError as error:
            return None, reason(error)
        return restored, ""

    def _set_aside(self, damaged: dict[int, str], note: Callable[[str], None]) -> None:
        """Moves checkpoints away, as Orbax would neither overwrite them nor save an earlier step beside them."""
        if not damaged:
            return
        self._manager.close()
        for step, problem in damaged.items():
            if jax.process_index() == 0:
                self._damaged.mkdir(exist_ok=True)
                shutil.rmtree(self._damaged / str(step), ignore_errors=True)
                (self.folder / str(step)).rename(self._damaged / str(step))
            note(f"checkpoint {step} is damaged ({problem}): moved to {self._damaged / str(step)}")
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
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


def _read(folder: Path, like: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads (this process's part of the sealed state, the data iterator's state) of a checkpoint.

    By Orbax's handlers: its manager waits for all processes at the end, but one that meets damage does not come.
    """
    arrays, json_file = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
    with contextlib.closing(arrays), contextlib.closing(json_file):
        state = arrays.restore(folder / "state", args=ocp.args.StandardRestore(sealed_like(like)))
        position = json_file.restore(folder / "data")
    if position["crc32"] != _crc32(position["data"]):
        raise ValueError("it is not what was saved at this step")
    return state, position["data"]


def with_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Adds to a tree of shapes where its arrays belong on a mesh."""
    where = sharding.of_state(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)


def reason(error: BaseException) -> str:
    """Returns the informative part of an error of Orbax or TensorStore, whose errors run over many lines."""
    text = " ".join(str(error).split()).split(". See full TensorStore details")[0] or type(error).__name__
    if jax.process_count() > 1 and any(words in text for words in LOST_EACH_OTHER):
        return "another process has ended; its output says why"
    for known in ("No space left on device", "File too large", "Disk quota exceeded", "Permission denied"):
        if known in text:
            return known.lower()
    if isinstance(error, KeyError):  # whose text is the bare key
        text = f"its metadata lacks {text}"
    return text if len(text) <= 120 else f"{text[:120]} ..."


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hides from the user what Orbax prints beside its errors; catch the errors inside, then collect."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None  # reads that were abandoned after the first error
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook


def _crc32(data: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())
