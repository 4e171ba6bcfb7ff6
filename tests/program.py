"""Runs the training program in a process of its own, as a user does, on a folder of tiny images."""

import os
import subprocess
import sys
from pathlib import Path

from tests.data.images import encode, photograph

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 900  # seconds; a shared machine may be slow


def write_images(folder: Path) -> Path:
    """Writes `train` and `test` folders of three classes each."""
    for split, count in (("train", 6), ("test", 3)):
        for label in range(3):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                seed = 1000 * (split == "test") + 100 * label + number
                (folder / split / f"class{label}" / f"{number}.png").write_bytes(encode(photograph(48, 56, seed)))
    return folder


def cpus(devices: int) -> dict[str, str]:
    """Returns the environment variables that give JAX so many CPU devices, compiled for as all tests are."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


class Program:
    """Starts `python -m dino_jax.main` with the tiny recipe; all processes share one compilation cache."""

    def __init__(self, images: Path, cache: Path):
        self.images, self.cache = images, cache

    def arguments(self, workdir: Path, **changes: object) -> list[str]:
        """Returns the command line; `changes` are values of the recipe, with __ for the dots."""
        values = {"data__path": self.images / "train", "data__test_path": self.images / "test"} | changes
        return [
            "--config=tests/tiny_recipe.py",
            f"--workdir={workdir}",
            *(f"--config.{key.replace('__', '.')}={value}" for key, value in values.items()),
        ]

    def environment(self, devices: int = 1) -> dict[str, str]:
        """Returns the environment of a process with that many CPU devices."""
        return (
            os.environ
            | cpus(devices)
            | {
                "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**33),  # with a limit, JAX locks the cache
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        )

    def start(self, *command: str, devices: int = 1, **more: str) -> subprocess.Popen[str]:
        """Starts `python -m *command` at the root of the project."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=self.environment(devices) | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Waits for a process."""
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def train(self, workdir: Path, **changes: object) -> subprocess.CompletedProcess[str]:
        """Runs the recipe to its end."""
        return self.finish(self.start("dino_jax.main", *self.arguments(workdir, **changes)))

    def train_until(self, signal: str, where: str, step: int, workdir: Path, **changes: object):
        """Runs the recipe with a signal to itself at a certain place, see `tests.signalled_run`."""
        arguments = self.arguments(workdir, **changes)
        return self.finish(self.start("tests.signalled_run", signal, where, str(step), *arguments))
