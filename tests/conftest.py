"""Shared fixtures: where the golden numbers are and how to read them."""

import gc
import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the tests' time, and what is compiled runs too briefly to make up for it; cut in parts for
# several threads, it costs more. The last flag is left out where it may be unknown: XLA refuses those.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import numpy as np
import pytest
from filelock import FileLock

from dino_jax.command import COLLECT
from tests.program import Program, write_images

gc.set_threshold(*COLLECT)

ROOT = Path(__file__).resolve().parent.parent


def golden_folders(named: str | None) -> list[Path]:
    """Returns where golden files are sought: in a folder that somebody named, or else in ours."""
    if named is None:
        return [ROOT / "tests" / "golden", ROOT.parent / "shared" / "goldens"]
    if not [*Path(named).glob("*.npz"), *Path(named).glob("hf_*/io.npz")]:  # or all tests on them would be skipped
        raise pytest.UsageError(f"DINO_JAX_GOLDENS = {named} is not a folder with golden files")
    return [Path(named)]


GOLDEN_FOLDERS = golden_folders(os.environ.get("DINO_JAX_GOLDENS"))


def golden_path(name: str) -> Path | None:
    """Returns the path of golden file or folder `name`, or None when no folder holds it."""
    return next((folder / name for folder in GOLDEN_FOLDERS if (folder / name).exists()), None)


def golden_names(pattern: str) -> list[str]:
    """Lists the golden files matching `pattern`, for parametrised tests."""
    return sorted({path.name for folder in GOLDEN_FOLDERS for path in folder.glob(pattern)})


def golden_runs(pattern: str) -> list[str]:
    """Lists the golden files of training runs, without those of their batches."""
    return [name for name in golden_names(pattern) if not name.endswith("_batches.npz")]


def golden_parts(name: str, pattern: str) -> list:
    """Lists what the groups of a regular expression stand for in the names of a golden file's arrays, each once.

    For tests with a case for each: strings, or tuples of them where the expression has several groups.
    """
    path = golden_path(name)
    if path is None:
        return []
    with np.load(path) as file:
        return sorted({found for array in file.files for found in re.findall(f"^{pattern}$", array)})


def golden_grids(name: str) -> list[int]:
    """Lists the sides N of the grids whose arrays a golden file has under `gridN/`."""
    return sorted(map(int, golden_parts(name, r"grid(\d+)/targets")))


class Golden(dict):
    """The arrays of one golden file by name, with its `config`."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as file:
            super().__init__({name: file[name] for name in file.files})
        self.config = json.loads(str(self.pop("config_json")))

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the arrays whose name starts with `prefix`, with the prefix removed."""
        return {name.removeprefix(prefix): array for name, array in self.items() if name.startswith(prefix)}


@pytest.fixture
def golden():
    """Loads a golden file by name; skips the test when it is not there."""

    def load(name: str) -> Golden:
        path = golden_path(name)
        if path is None:
            pytest.skip(f"golden file {name} is in none of {[str(f) for f in GOLDEN_FOLDERS]}")
        return Golden(path)

    return load


@pytest.fixture
def shared_data():
    """Returns the folder of real labelled photographs; skips the test when it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


def pytest_collection_modifyitems(items):
    """Puts files that start whole training processes first: neither test process shall be left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """Starts the training program on a folder of tiny images; all test processes share it, and what is compiled."""
    common = common_folder(tmp_path_factory)
    with FileLock(common / "images.lock"):
        if not (common / "images").exists():
            write_images(common / "images")
    return Program(common / "images", common / "compiled")


@pytest.fixture(scope="session")
def uninterrupted(program, tmp_path_factory):
    """Returns a copy of the workdir of a run of the tiny recipe that nothing disturbed, with what the run printed."""
    common = common_folder(tmp_path_factory)
    with FileLock(common / "uninterrupted.lock"):  # of several test processes, the first runs it for all
        if not (common / "uninterrupted" / "results.json").exists():
            done = program.train(common / "uninterrupted")
            assert done.returncode == 0, done.stderr
            (common / "uninterrupted" / "stdout").write_text(done.stdout)
            (common / "uninterrupted" / "stderr").write_text(done.stderr)
    return shutil.copytree(common / "uninterrupted", tmp_path_factory.mktemp("uninterrupted") / "run")


def common_folder(tmp_path_factory) -> Path:
    """Returns a temporary folder that all test processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def portable_cudnn(monkeypatch):
    """Lets attention "cudnn" run anywhere: the same function of JAX, without its kernel but with what that asks for.

    Gradients of keys and values beyond the length are whatever was in memory.
    """
    import jax
    import jax.numpy as jnp

    function = jax.nn.dot_product_attention

    @jax.custom_vjp
    def leave_unwritten(x, lengths):
        return x

    def backward(lengths, gradient):
        written = jnp.arange(gradient.shape[1]) < lengths[:, None]
        return jnp.where(written[..., None, None], gradient, jnp.nan), None

    leave_unwritten.defvjp(lambda x, lengths: (x, lengths), backward)

    def portable(q, k, v, *, implementation, key_value_seq_lengths=None):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0  # or it has no backward pass
        if key_value_seq_lengths is not None:
            assert key_value_seq_lengths.shape == (len(q),)
            k, v = (leave_unwritten(x, key_value_seq_lengths) for x in (k, v))
        return function(q, k, v, implementation="xla", key_value_seq_lengths=key_value_seq_lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", portable)
