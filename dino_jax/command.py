"""What all `python -m dino_jax.<verb>` commands share: errors as one line, exit codes, and a quiet terminal."""

import contextlib
import errno
import gc
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dino_jax import startup

# What JAX traces and imports are many small objects that stay. Python's search for cycles among them, at its usual
# thresholds (700, 10, 10), takes a seventh of a program's start.
COLLECT = (50_000, 20, 50)
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of XLA's error


def run(command: Callable[[], None], *, interrupted: str = "interrupted", trains: bool = False) -> int:
    """Runs a command.

    Args:
      interrupted: what Ctrl-C leaves behind, in words.
      trains: it calls `startup.choose_loops` itself, once it knows its heads.

    Returns:
      The exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted; each but 0 with one line on stderr.
    """
    gc.set_threshold(*COLLECT)
    startup.prepare_cpu()
    startup.reserve_memory()
    if not trains:
        startup.choose_loops()
    with lasting_streams():
        try:
            code = _attempt(command, interrupted)
        except BaseException:  # a defect
            if not _among_others():
                raise
            traceback.print_exc()
            code = 1
    if code and _among_others():
        # An orderly end would wait minutes for the others, which wait for this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class _Lasting:
    """A stream that goes quiet, instead of raising an error, once nobody takes what is written.

    That is a terminal that was closed, or `tee`, which Ctrl-C ends too: neither shall keep a run from saving.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._silence(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._silence(error)

    def _silence(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # such as a full disk
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Lets standard output and error outlast whoever reads them, see `_Lasting`."""
    before = sys.stdout, sys.stderr
    lasting: Any = [stream and _Lasting(stream) for stream in before]  # a stream that is closed is None
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in filter(None, lasting):
            with contextlib.suppress(OSError):  # of a full disk, which Python reports as it ends
                stream.flush()
        sys.stdout, sys.stderr = before


def _among_others() -> bool:
    """Tells whether this is one of several processes."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _attempt(command: Callable[[], None], interrupted: str) -> int:
    try:
        command()
    except ValueError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"error: this machine has too little memory ({one_line(error)})", file=sys.stderr)
        return 1
    except FloatingPointError as error:
        print(f"stopped: {one_line(error)}", file=sys.stderr)
        return 1
    except (RuntimeError, AssertionError) as error:
        if _starts_devices(error):
            wanted, words = os.environ.get("JAX_PLATFORMS", ""), str(error).partition(" (set JAX_PLATFORMS")[0]
            advice = "install what that platform needs (see the README), or unset JAX_PLATFORMS"
            line = f"error: JAX finds no device of JAX_PLATFORMS={wanted!r}: {advice}. {words}"
            print(line.rstrip(), file=sys.stderr)
            return 2
        if OUT_OF_MEMORY not in str(error):
            raise
        words = one_line(error).partition(OUT_OF_MEMORY)[2].lstrip(": ")[:200]
        advice = "use a smaller batch; in training also remat=full, or a larger mesh.fsdp"
        print(f"error: the device has too little memory ({words}): {advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0


def _starts_devices(error: BaseException) -> bool:
    """Tells whether an error comes from where JAX starts its devices."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == "jax._src.xla_bridge"


def leave_on_signals(words: str) -> None:
    """Lets Ctrl-C (with exit code 130) and SIGTERM (0) end the process at once, as long as there is nothing to save.

    Python would raise KeyboardInterrupt, which some imported code swallows or takes for an error of its own.
    """
    signal.signal(signal.SIGINT, lambda *_: leave(130, words))
    text = "stopped, there was nothing new to save: run the same command to continue"
    signal.signal(signal.SIGTERM, lambda *_: leave(0, text))


def leave(code: int, words: str) -> None:
    """Ends the process from a signal handler."""
    say(words)
    os._exit(code)


def say(words: str) -> None:
    """Writes a line to stderr from a signal handler, which may have come in the middle of a print."""
    with contextlib.suppress(OSError):  # of a pipe that nobody reads any more
        os.write(2, f"\n{words}\n".encode())


def one_line(error: BaseException | str) -> str:
    """Returns an error's message as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(name: object) -> str:
    """Escapes bytes of a file's name that are not UTF-8 as \\xff, which terminals and all formats can hold."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_output(file: str | Path | None) -> None:
    """Makes the folder of a file that will be written after long work.

    Raises:
      ValueError: when the file cannot be there.
    """
    if file is None:
        return
    check_output_folder(Path(file).parent)
    if Path(file).is_dir():
        raise ValueError(f"{file} cannot be written: it is a folder; give a file in it")


def check_output_folder(folder: Path) -> None:
    """Makes a folder in which files will be written after long work.

    Raises:
      ValueError: when it cannot be there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to: {error.strerror}") from None


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Makes a folder as `check_output_folder`, and takes it away again if nothing came into it."""
    check_output_folder(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def only_our_lines() -> None:
    """Keeps remarks of the libraries below off the terminal; their errors reach it as exceptions, in one line.

    Warnings take one line as well.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {one_line(message)}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    # asyncio reports the other writes of a save whose first error has already reached us.
    for name, level in (("absl", logging.CRITICAL), ("asyncio", logging.CRITICAL), ("tensorboardX", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    shown = sys.unraisablehook

    def hook(problem: Any) -> None:
        # TensorStore's threads report the remaining writes of a save that failed to a loop that has ended with it.
        if str(problem.exc_value) != "Event loop is closed":
            shown(problem)

    sys.unraisablehook = hook
