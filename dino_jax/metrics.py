"""Writes what a run measures: metrics.jsonl, throughput.jsonl and TensorBoard event files.

Two files, because only one of them may depend on the clock. `metrics.jsonl` holds numbers that are a pure function of
the run, so that it is bit-identical after a kill and a restart; `throughput.jsonl` beside it holds the timing.
"""

import contextlib
import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from dino_jax.data.whole import write_whole

NOTHING_RESTORED = -1


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a metrics.jsonl: one dict per logged step, "step" an int and every other value a float (null is NaN).

    A file that is not there has none; a last line that was cut by a kill is left out. Raises ValueError, naming the
    line, when an earlier one is damaged.
    """
    if not Path(path).exists():
        return []
    return [{"step": record.pop("step")} | _floats(record) for _, record in _records(Path(path))]


class JsonLines:
    """Appends one JSON object a step to a file; a failed write leaves exactly the lines that were there before.

    Non-finite values are written as null, as JSON has no NaN. Floats are written with all their digits.
    """

    def __init__(self, path: Path, resume_step: int):
        """Opens `path` after dropping the lines of steps after `resume_step` and a last line cut by a kill."""
        if path.exists():
            kept = b"".join(line for line, record in _records(path) if record["step"] <= resume_step)
            if kept != path.read_bytes():
                write_whole(path, lambda file: file.write(kept))
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes {"step": step, **values}; raises OSError when the disk is full or the file cannot be written."""
        numbers = {name: float(value) for name, value in values.items()}
        record = {"step": int(step), **{n: v if math.isfinite(v) else None for n, v in numbers.items()}}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            # An unbuffered write to a nearly full disk may store a part of the line without raising.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            raise _cannot_write(error, self._path, step) from error
        self._size += len(line)

    def sync(self) -> None:
        """Waits until what was appended has reached the disk; raises OSError when it has no room."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:  # only now, on a network file system
            raise _cannot_write(error, self._path) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Writes scalars as TensorBoard event files through tensorboardX.

    Uses tensorboardX's synchronous writer: its `SummaryWriter` writes from a thread that dies silently when the disk is
    full, after which the training loop would wait for ever on the thread's queue.
    """

    def __init__(self, folder: Path, resume_step: int):
        """Opens a new event file; TensorBoard hides earlier files' points of steps after `resume_step`."""
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar
        self._event, self._scalar = Event, scalar
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The suffix keeps a run restarted within the same second from overwriting its own file.
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{resume_step + 1}")
        except OSError as error:
            raise _cannot_write(error, folder) from error
        if resume_step != NOTHING_RESTORED:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes the scalars of one step; raises OSError when the disk is full."""
        try:
            for name, value in values.items():
                event = self._event(wall_time=time.time(), step=step, summary=self._scalar(name, float(value)))
                self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            raise _cannot_write(error, self._folder, step) from error

    def close(self) -> None:
        """Closes the event file; what a full disk has no room for is lost without another error."""
        with contextlib.suppress(OSError):
            self._writer.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides PyTorch, which tensorboardX would import where it is installed: it takes seconds and is of no use here."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


class MetricsWriter:
    """Writes metrics.jsonl, throughput.jsonl and tensorboard/ under a workdir, on process 0 only.

    Values are numbers or scalar arrays under flat `group/name` keys.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = NOTHING_RESTORED):
        """Opens the files for a run that continues after `resume_step` completed updates.

        Lines of later steps, written between that checkpoint and a kill, are dropped; NOTHING_RESTORED drops all lines.
        """
        self._sinks: dict[str, JsonLines] = {}
        self._tensorboard: TensorBoard | None = None
        if jax.process_index() == 0:
            folder = Path(workdir)
            folder.mkdir(parents=True, exist_ok=True)
            self._sinks = {name: JsonLines(folder / f"{name}.jsonl", resume_step) for name in ("metrics", "throughput")}
            self._tensorboard = TensorBoard(folder / "tensorboard", resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs numbers that are a pure function of the run to metrics.jsonl and TensorBoard.

        Raises OSError naming the file when the disk is full; the lines written before stay whole.
        """
        self._append("metrics", step, values)

    def write_throughput(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs timing to throughput.jsonl and TensorBoard; raises like `write`."""
        self._append("throughput", step, values)

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        if self._tensorboard is not None:
            self._sinks[name].append(step, values)
            self._tensorboard.append(step, values)

    def sync(self) -> None:
        """Waits until what was written to metrics.jsonl and throughput.jsonl has reached the disk."""
        for sink in self._sinks.values():
            sink.sync()

    def close(self) -> None:
        """Closes all files."""
        for sink in (*self._sinks.values(), self._tensorboard):
            if sink is not None:
                sink.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _floats(record: Mapping[str, Any]) -> dict[str, float]:
    """Undoes the writing of non-finite values as null."""
    return {name: math.nan if value is None else float(value) for name, value in record.items()}


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields every whole line of a .jsonl file with its content; a last line without its newline was cut by a kill."""
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}: line {number} is damaged: {line[:60]!r}; remove that line to continue with the rest"
            ) from None
        yield line + b"\n", record


def _cannot_write(error: OSError, path: Path, step: int | None = None) -> OSError:
    """Words a failed write as one line; keeps the error number, so that callers can tell a full disk."""
    what = f"cannot log {'' if step is None else f'step {step} '}to {path}: {error.strerror}"
    return OSError(error.errno, f"{what}; what was written before is intact: free space, then run the same command")
