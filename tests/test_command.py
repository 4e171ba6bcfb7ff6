import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dino_jax import command


def failing(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("no such\n key"), 2, "error: no such key"),
        (OSError("disk is full"), 1, "error: disk is full"),
        (FloatingPointError("not finite"), 1, "stopped: not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte."),
            1,
            "error: the device has too little memory (Out of memory while trying to allocate 1 byte.): use a smaller "
            "batch; in training also remat=full, or a larger mesh.fsdp",
        ),
    ],
)
def test_errors_are_one_line_and_a_code(error, code, line, capsys):
    assert command.run(failing(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("platform", ["cuda", "absent"])
def test_devices_that_are_not_there_are_one_line(platform):
    if any(entry.name.endswith(platform) for entry in importlib.metadata.entry_points(group="jax_plugins")):
        pytest.skip(f"JAX's plugin for {platform} is installed")
    code = "import jax, sys; from dino_jax import command; sys.exit(command.run(jax.devices))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: JAX finds no device of JAX_PLATFORMS='{platform}': install what that")
    assert done.stderr.count("\n") == 1


def test_a_defect_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a defect"):
        command.run(failing(RuntimeError("a defect")))


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("SIGINT", 130, "nothing was begun"), ("SIGTERM", 0, "stopped, there was nothing new to save")],
)
def test_a_signal_before_the_run_ends_the_process(name, code, words):
    """Python's own KeyboardInterrupt would be swallowed here."""
    script = f"""
import os, signal
from dino_jax import command
command.leave_on_signals("nothing was begun")
try:
    os.kill(os.getpid(), signal.{name})
except BaseException:
    pass
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"\n{words}") and done.stderr.count("\n") == 2


def test_too_little_memory_is_one_line(capsys):
    def work():
        raise MemoryError("Unable to allocate 9 TiB")

    assert command.run(work) == 1
    assert capsys.readouterr().err == "error: this machine has too little memory (Unable to allocate 9 TiB)\n"


FULL = pytest.param("> /dev/full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full"))


@pytest.mark.parametrize("redirection", [FULL, ">&-", "2>&-", ""])
def test_a_full_disk_is_no_reader_that_left(redirection):
    program = "import sys; from dino_jax.command import run; sys.exit(run(lambda: print('numbers')))"
    done = subprocess.run(f'{sys.executable} -c "{program}" {redirection}', shell=True, capture_output=True, text=True)
    full = redirection == "> /dev/full"
    assert (done.returncode != 0) == full
    assert done.stdout == ("" if ">" in redirection and "2" not in redirection else "numbers\n")
    assert ("No space left on device" in done.stderr) == full
