"""What the file formats share: element types, a file seen as bytes, and writing that leaves nothing half done."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

StateDict = Mapping[str, np.ndarray]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


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


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raises ValueError when something stands at `path` and must not be replaced."""
    if path.exists() and not force:
        raise ValueError(f"{path} exists: choose another --out, or replace it with --force")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` for a file or folder; it takes the place of `path` if all goes well.

    Raises:
      ValueError: when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink()
