"""What all `python -m dino_jax.<verb>` commands share: errors as one line, exit codes, and a quiet terminal."""

import contextlib
import ctypes
import errno
import gc
import importlib.metadata
import importlib.util
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Options of glibc's mallopt, and what each shall be: one heap for all threads, no mappings of their own for large
# arrays, and nothing given back to the system.
KEEP_MEMORY = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
# What JAX traces and imports are many small objects that stay. Python's search for cycles among them, at its usual
# thresholds (700, 10, 10), takes a seventh of a program's start.
COLLECT = (50_000, 20, 50)
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of XLA's error
JOIN_SECONDS = 900  # in which all processes must have started; hundreds may import from one file system
END_SECONDS = 30 * 24 * 3600  # in which they must end: one may have more to do than the others; JAX's 300 kill it
MEMORY_SHARE = "0.9"  # the rest is for CUDA's own libraries
OLDER_LOOPS = "xla_cpu_use_fusion_emitters"
OLDER_LOOPS_FROM = 128  # hidden features of a head; a smaller one takes the older code minutes to compile


def run(command: Callable[[], None], *, interrupted: str = "interrupted", trains: bool = False) -> int:
    """Runs a command.

    Args:
      interrupted: what Ctrl-C leaves behind, in words.
      trains: it calls `choose_loops` itself, once it knows its heads.

    Returns:
      The exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted; each but 0 with one line on stderr.
    """
    gc.set_threshold(*COLLECT)
    prepare_cpu()
    reserve_memory()
    if not trains:
        choose_loops()
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


def prepare_cpu() -> None:
    """Sets a process up for computing on a CPU; call it before JAX starts. With an accelerator, it changes nothing.

    XLA allocates a step's temporary arrays anew for every step. Under Linux, glibc would return them in between, and
    the system would map and clear each page again: that took a fifth of a ViT-S step's time on two cores.
    """
    if _accelerated() or sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # other C libraries have none
        for option, value in KEEP_MEMORY.values():
            library.mallopt(option, value)


def choose_loops(hidden: int = OLDER_LOOPS_FROM) -> None:
    """Chooses XLA's code for fused loops on a CPU; call it before JAX computes.

    The older one compiles in half the time of the newer, and ran the quickstart's Gram phase 1.4 times as fast in 0.9
    instead of 1.5 GiB (jaxlib 0.10.2). XLA refuses unknown flags, so other versions get none.

    Args:
      hidden: features of the smallest head that is trained.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    older = importlib.metadata.version("jaxlib").startswith("0.10.") and hidden >= OLDER_LOOPS_FROM
    if older and OLDER_LOOPS not in flags and not _accelerated():
        os.environ["XLA_FLAGS"] = f"{flags} --{OLDER_LOOPS}=false".strip()


def reserve_memory() -> None:
    """Lets JAX use more of a GPU's memory than three quarters, its default, unless a variable says how much."""
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = MEMORY_SHARE


def _accelerated() -> bool:
    """Tells whether JAX would compute on something else than a CPU."""
    there = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return bool(there) and os.environ.get("JAX_PLATFORMS") != "cpu"


def join_cluster() -> None:
    """Connects the processes of a command on several hosts, one per host or per GPU, started by the same line on each.

    With DINO_JAX_DISTRIBUTED=1 on Cloud TPU, Slurm, Open MPI or Kubernetes they find each other; elsewhere
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where and how many.

    Raises:
      ValueError: for what is not a number, or addresses that cannot be.
      TimeoutError: when the others do not come.
    """
    import jax

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and os.environ.get("DINO_JAX_DISTRIBUTED") != "1":
        return
    # On CPUs, programs dispatched ahead may reach their collectives in another order in each process and wait for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    given: dict[str, Any] = {}
    if address and "JAX_NUM_PROCESSES" in os.environ:
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        try:
            given = {argument: int(os.environ[name]) for argument, name in names.items()}
        except (KeyError, ValueError):
            values = " ".join(f"{name}={os.environ.get(name, '')}" for name in names.values())
            raise ValueError(f"{values}: with JAX_COORDINATOR_ADDRESS={address}, both must be whole numbers") from None
        given["coordinator_address"] = address
    try:
        jax.distributed.initialize(**given, initialization_timeout=JOIN_SECONDS, shutdown_timeout_seconds=END_SECONDS)
    except (RuntimeError, ValueError) as error:
        late = "DEADLINE_EXCEEDED" in str(error)
        kind = TimeoutError if late else ValueError
        raise kind(f"this process cannot join the others: {one_line(error)}") from error


def check_one_process(name: str) -> None:
    """Raises ValueError when several processes are meant to run a command that knows of one."""
    if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("DINO_JAX_DISTRIBUTED") == "1":
        raise ValueError(
            f"{name} runs in one process, on all its devices: start it once, without DINO_JAX_DISTRIBUTED and "
            "JAX_COORDINATOR_ADDRESS"
        )


def describe_devices(devices: list, processes: int) -> str:
    """Says in a line what the command computes on."""
    kind = devices[0].device_kind if devices[0].device_kind != devices[0].platform else devices[0].platform.upper()
    many = f"{len(devices)} devices" if len(devices) > 1 else "1 device"
    return f"{many} ({kind})" + (f" in {processes} processes" if processes > 1 else "")
