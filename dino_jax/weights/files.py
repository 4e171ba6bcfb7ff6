"""What the file formats share: element types, a file seen as bytes, and writing that leaves nothing half done."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dino_jax.data.whole import is_complete

StateDict = Mapping[str, np.ndarray]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# What weights are, in a folder of our own format or beside a checkpoint whose layout cannot hold everything; and the
# tensors that such a layout cannot hold.
FACTS = "dino_jax.json"
ASIDE = "dino_jax.safetensors"

# All that converters put into a folder, beside the Orbax checkpoint `ARRAYS` of our own format.
WRITTEN = (
    FACTS,
    ASIDE,
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
)
ARRAYS = "arrays"


class Unsupported(Exception):
    """A file is whole, but holds what cannot be read here; the message says what."""


def bytes_of(path: Path) -> np.ndarray:
    """Maps a file into memory, uint8 `(size,)`; nothing is read yet.

    Raises:
      ValueError: when it cannot be opened or is empty.
    """
    try:
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is empty: fetch it again") from None


def raw(array: np.ndarray) -> memoryview:
    """Returns the bytes of an array, row-major and little-endian, without a copy where it already is."""
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1).view(np.uint8))


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Says whether two arrays agree in shape, type and every bit (so -0.0 is not 0.0, and NaNs compare)."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(np.array_equal(np.frombuffer(raw(first), np.uint8), np.frombuffer(raw(second), np.uint8)))


def check_finite(state: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError naming the first tensor that holds NaN or infinity."""
    for name, array in state.items():
        if array.dtype.kind in "fV" and not np.isfinite(array.astype(np.float32, copy=False)).all():
            raise ValueError(f"{path}: tensor {name} {array.shape} holds NaN or infinity: these weights are damaged")


def refuse_existing(path: Path, *, folder: bool, force: bool) -> None:
    """Makes sure that nothing stands at `path` that must not be replaced.

    Args:
      folder: whether a folder is to be written, not a file.
      force: whether weights, or a file by a file, may be replaced.

    Raises:
      ValueError: when something does.
    """
    if path.exists() and not force:
        raise ValueError(f"{path} exists: choose another --out, or replace it with --force")
    _check_replaceable(path, folder=folder)


def _check_replaceable(path: Path, *, folder: bool) -> None:
    """Raises ValueError when replacing `path` would remove more than a file, or a folder of nothing but weights."""
    if not path.exists():
        return
    if not folder:
        if path.is_dir():
            raise ValueError(f"{path} is a folder, which a file cannot replace: give the path of a file")
        return
    if path.is_symlink() or not path.is_dir():
        raise ValueError(f"{path} is a file or a link, which a folder cannot replace: choose another --out")
    entries = sorted(path.iterdir())
    foreign = [entry.name for entry in entries if not _is_written(entry)]
    if foreign:
        raise ValueError(f"{path} holds {foreign[0]}, which is not part of weights: choose another --out")
    names = {entry.name for entry in entries}
    if names and FACTS not in names and not names >= {"config.json", "model.safetensors"}:
        raise ValueError(f"{path} is not a folder of weights ({', '.join(sorted(names))}): choose another --out")


def _is_written(entry: Path) -> bool:
    """Says whether something in a folder looks as if a converter had written it."""
    if entry.name == ARRAYS:
        return is_complete(entry)
    return entry.name in WRITTEN and entry.is_file()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` for a file or folder; it takes the place of `path` if all goes well.

    Raises:
      ValueError: when it cannot be written, or what is at `path` is no such thing (see `refuse_existing`).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _check_replaceable(path, folder=temporary.is_dir())
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink()
