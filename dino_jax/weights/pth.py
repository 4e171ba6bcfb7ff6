"""PyTorch's .pth files, read without PyTorch and without running what is pickled in them.

A .pth file is a zip archive (since PyTorch 1.6) or a sequence of pickles (before); both hold one pickled object whose
tensors refer to storages kept beside it. The pickle may name only what `SAFE` and `INERT` list; anything else, such as
`os.system`, is refused by name before it is looked up.
"""

import collections
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dino_jax.weights.files import BFLOAT16, Unsupported, bytes_of

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
MOST_REPEATED = 2**24  # elements of a tensor that repeats a smaller storage, lest few bytes become many
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the first pickle of the older format


class Inert:
    """Stands for a harmless object whose content nobody needs, such as the command line in DINOv1's checkpoints."""

    def __init__(self, *_: object, **__: object):
        """Ignores whatever it is made from."""

    def __setstate__(self, state: object) -> None:
        """Ignores the state."""

    def append(self, _: object) -> None:
        """Ignores an item."""

    def extend(self, _: object) -> None:
        """Ignores items."""

    def __setitem__(self, _: object, __: object) -> None:
        """Ignores an item."""


DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
INERT = {
    *(("argparse", "Namespace"), ("_codecs", "encode"), ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath")),
    *(("numpy", "dtype"), ("numpy", "ndarray"), ("torch", "device"), ("torch", "Size"), ("collections", "Counter")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(("torch", name) for name in DTYPES),
    *(("torch", "Tensor"), ("torch.nn.parameter", "Parameter")),
    *(("builtins", "set"), ("builtins", "slice"), ("__builtin__", "set"), ("collections", "defaultdict")),
}


def rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: object) -> np.ndarray:
    """Views a tensor in its storage; the order of arguments is PyTorch's."""
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError("a tensor has an impossible shape")
    count = int(np.prod(size, dtype=object))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    repeats = 0 in stride and count <= MOST_REPEATED  # what `expand` gives
    if count and (last >= len(storage) or (count > len(storage) and not repeats)):
        raise ValueError("a tensor reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def rebuild_parameter(data: np.ndarray, *_: object) -> np.ndarray:
    """Returns the tensor inside of a parameter, without attributes."""
    return data


def rebuild_subclass(rebuild: Any, _: object, arguments: tuple, *__: object) -> np.ndarray:
    """Returns the tensor inside of one that has attributes or is of a class of its own."""
    if rebuild not in (rebuild_tensor, rebuild_parameter):
        raise ValueError("a tensor of an unknown class")
    return rebuild(*arguments)


SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): rebuild_subclass,
}

# Tensors that no array here can hold: how the pickle names them, or begins to.
UNSUPPORTED = {
    "torch ComplexFloatStorage": "complex tensors",
    "torch ComplexDoubleStorage": "complex tensors",
    "torch._utils _rebuild_sparse_tensor": "sparse tensors",
    "torch._utils _rebuild_qtensor": "quantised tensors",
    "torch._utils _rebuild_tensor_v3": "tensors of a type unknown here, such as float8",
    "torch._utils _rebuild_meta_tensor_no_storage": "tensors without numbers, of the device meta",
}
PUTS = ("PUT", "BINPUT", "LONG_BINPUT")  # which number a part, to refer to it later
LONGEST_PICKLE = 100_000_000  # bytes; that of a checkpoint has some 100 for each tensor


class SafeUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and tensors, and nothing else."""

    def __init__(self, file: BinaryIO, storage: Callable[[str, np.dtype, int], np.ndarray] | None = None):
        """Takes what finds a storage by its key, element type and length."""
        super().__init__(file, encoding="utf-8")
        self.file, self.storage = file, storage

    def load(self) -> Any:
        """Unpickles, once it is sure that the pickle numbers its parts one after the other.

        Python makes room for the largest number: a few bytes that say 2**31 would take all memory.
        """
        start = self.file.tell()
        for count, (code, argument, _) in enumerate(pickletools.genops(self.file)):
            if code.name in PUTS and int(argument or 0) > count:
                raise ValueError(f"its pickle numbers part {argument} of {count}")
        self.file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a global of the pickle; refuses any that is not listed."""
        if f"{module} {name}" in UNSUPPORTED:
            raise Unsupported(f"holds {UNSUPPORTED[f'{module} {name}']}: save it with tensors of float32")
        if module.startswith("torch.distributed"):
            raise Unsupported(
                f"is one shard of a distributed run ({name}): give a file of the whole network, such as the teacher's"
            )
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if (module, name) in INERT:
            return Inert
        if (module, name) not in SAFE:
            raise PermissionError(f"{module}.{name}")
        return SAFE[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Returns the storage that a tensor refers to."""
        kind, dtype, key, _, length = pid[:5]
        if kind != "storage" or self.storage is None or not isinstance(dtype, np.dtype):
            raise ValueError(f"an unknown kind of storage, {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("views of storages are not supported")
        return self.storage(str(key), dtype, int(length))


def read(path: str | Path) -> Any:
    """Reads a .pth file.

    Returns:
      The stored object: containers with arrays in place of tensors, which are views of the mapped file.

    Raises:
      ValueError: when the file is cut off, is of another format, holds tensors of unknown kinds or a shard of them, or
        its pickle names code.
    """
    path = Path(path)
    data = bytes_of(path)
    try:
        if data[:4].tobytes() == b"PK\x03\x04":
            return _read_zip(path, data)
        if data[: len(LEGACY_MAGIC)].tobytes() == LEGACY_MAGIC:
            return _read_legacy(path, data)
    except PermissionError as error:
        raise ValueError(
            f"{path} asks to run {error.args[0]!r} when it is loaded: refused; weights need no code, get them elsewhere"
        ) from None
    except Unsupported as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # a damaged pickle or archive can make the parsers raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is cut off or damaged ({text}): fetch it again") from None
    raise ValueError(f"{path} is not a PyTorch file: it begins neither like a zip archive nor like an old checkpoint")


def _read_zip(path: Path, data: np.ndarray) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if root is None:
            raise ValueError("this zip archive holds no data.pkl")
        if f"{root}byteorder" in entries and _beginning(archive, f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        if entries[f"{root}data.pkl"].file_size > LONGEST_PICKLE:
            raise ValueError(f"its data.pkl is longer than {LONGEST_PICKLE} bytes")

        def storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
            entry = entries[f"{root}data/{key}"]
            if entry.compress_type != zipfile.ZIP_STORED:  # which PyTorch never is, and few bytes could become many
                raise Unsupported("is compressed: save it again with torch.save, or unzip it and zip it with -0")
            return of_length(stored(data, entry), dtype, length)

        with archive.open(f"{root}data.pkl") as file:
            return SafeUnpickler(file, storage).load()  # type: ignore[arg-type]


def _beginning(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(16)


def stored(data: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
    """Views the bytes of an uncompressed zip entry in the mapped file."""
    # The local header repeats the name and has an extra field of its own length, PyTorch's padding to 64 bytes.
    header = data[entry.header_offset : entry.header_offset + 30].tobytes()
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"entry {entry.filename} is not where it should be")
    start = entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return data[start : start + entry.file_size]


def of_length(content: np.ndarray, dtype: np.dtype, length: int) -> np.ndarray:
    """Views `length` elements in bytes; raises ValueError when there are fewer."""
    size = length * dtype.itemsize
    if length < 0 or len(content) < size:
        raise ValueError(f"a storage has {len(content)} bytes, it should have {size}")
    return np.frombuffer(content, np.uint8, size).view(dtype)


def _read_legacy(path: Path, data: np.ndarray) -> Any:
    storages: dict[str, np.ndarray] = {}
    wanted: dict[str, tuple[np.dtype, int]] = {}

    def measured(key: str, dtype: np.dtype, length: int) -> np.ndarray:
        wanted[key] = (dtype, length)
        return storages[key] if storages else np.zeros(length, dtype)

    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the protocol, and facts about the machine
            SafeUnpickler(file).load()
        start = file.tell()
        # The storages come after the pickle that uses them, so that is read twice: first to learn their types.
        SafeUnpickler(file, measured).load()
        for key in SafeUnpickler(file).load():
            dtype, length = wanted[key]
            position = file.tell() + 8
            storages[key] = of_length(data[position:], dtype, length)
            file.seek(position + length * dtype.itemsize)
        file.seek(start)
        return SafeUnpickler(file, measured).load()
