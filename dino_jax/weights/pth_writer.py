"""Writes PyTorch's .pth files without PyTorch, so that `torch.load(weights_only=True)` accepts them."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.weights.files import raw, replacing
from dino_jax.weights.pth import STORAGES

STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
ALIGNMENT = 64  # of every storage in the file, as PyTorch does it, so that it can be mapped into memory
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same weights give the same bytes


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes nested mappings of names to arrays as a .pth file; an existing file is replaced.

    Raises:
      ValueError: for an element type that PyTorch lacks, or when the file cannot be written.
    """
    storages: list[np.ndarray] = []
    program = b"\x80\x02" + _mapping(content, storages, "") + b"."
    with replacing(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _entry(archive, "data.pkl", memoryview(program))
        _entry(archive, "byteorder", memoryview(b"little"))
        for index, array in enumerate(storages):
            _entry(archive, f"data/{index}", raw(array))
        _entry(archive, "version", memoryview(b"3\n"))


def _entry(archive: zipfile.ZipFile, name: str, content: memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}", LONG_AGO)
    assert archive.fp is not None
    large = content.nbytes > zipfile.ZIP64_LIMIT
    # An extra field that readers skip ("FB", as PyTorch names it) pads the header; zip64 adds 20 bytes to it.
    begin = archive.fp.tell() + 30 + len(info.filename) + 4 + (20 if large else 0)
    padding = -begin % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    info.file_size = content.nbytes
    with archive.open(info, "w", force_zip64=large) as file:
        file.write(content)


# What follows are opcodes of pickle's protocol 2.


def _mapping(content: Mapping[str, Any], storages: list[np.ndarray], where: str) -> bytes:
    out = [_global("collections", "OrderedDict"), b")R("]
    for key, value in content.items():
        name = f"{where}{key}"
        nested = isinstance(value, Mapping)
        out += [_text(key), _mapping(value, storages, f"{name}.") if nested else _tensor(value, storages, name)]
    return b"".join(out) + b"u"


def _tensor(array: np.ndarray, storages: list[np.ndarray], name: str) -> bytes:
    if array.dtype not in STORAGE_OF:
        raise ValueError(f"tensor {name} of type {array.dtype} cannot be stored for PyTorch: convert it first")
    key = str(len(storages))
    storages.append(array)
    storage = b"(" + _text("storage") + _global("torch", STORAGE_OF[array.dtype]) + _text(key) + _text("cpu")
    storage += _int(array.size) + b"tQ"
    strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    hooks = _global("collections", "OrderedDict") + b")R"
    shape = _tuple(array.shape) + _tuple(strides)
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + _int(0) + shape + b"\x89" + hooks + b"tR"


def _global(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _int(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _tuple(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"
