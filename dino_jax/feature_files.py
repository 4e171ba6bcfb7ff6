"""Part files of features: .npz, Parquet or ArrayRecord, each written whole and the same bytes every time."""

import errno
import importlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from dino_jax.data.shards import read_npz
from dino_jax.data.whole import write_whole

Features = Mapping[str, np.ndarray]
SCALARS = ("names", "labels", "ids")


def path_of(folder: Path, number: int, count: int, kind: str) -> Path:
    """Returns the file of part `number` of `count`."""
    return folder / f"features-{number:05d}-of-{count:05d}.{SUFFIXES[kind]}"


def write(path: Path, features: Features, kind: str) -> None:
    """Writes "names", "labels", "ids" and the outputs, each `(images, ...)`."""
    WRITERS[kind](path, features)


def read(path: Path, outputs: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, np.ndarray]:
    """Reads a part back.

    Args:
      outputs: the shape of each, without the axis of images.

    Raises:
      ValueError: if it is damaged.
    """
    return READERS[kind](path, outputs)


def require(kind: str) -> None:
    """Makes sure that a format can be written.

    Raises:
      ValueError: naming what is to be installed.
    """
    package = {"parquet": "pyarrow", "arrayrecord": "array_record"}.get(kind)
    try:
        if package:
            importlib.import_module(package)
    except ImportError:
        raise ValueError(f"format {kind} needs {package}: pip install -e '.[features]', or use npz") from None


def _write_npz(path: Path, features: Features) -> None:
    write_whole(path, lambda file: np.savez(file, **features))  # type: ignore[arg-type]


def _read_npz(path: Path, outputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return read_npz(path, names={*SCALARS, *outputs})


def _write_parquet(path: Path, features: Features) -> None:
    """Writes one row an image; an output is a list column, its shape in the column's metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    columns, fields = [], []
    for name, array in features.items():
        flat = pa.array(array.reshape(-1))
        shape = {b"shape": json.dumps(list(array.shape[1:])).encode()} if name not in SCALARS else None
        column = flat if shape is None else pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))
        columns.append(column)
        fields.append(pa.field(name, column.type, metadata=shape))
    rows = pa.table(columns, schema=pa.schema(fields))

    def save(file: IO[bytes]) -> None:
        parquet.write_table(rows, file, compression="zstd", row_group_size=1024)

    write_whole(path, save)


def _read_parquet(path: Path, outputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path)
        found = {name: rows[name].combine_chunks() for name in (*SCALARS, *outputs)}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())})") from None
    scalars = {name: np.asarray(found[name].to_numpy(zero_copy_only=False)) for name in SCALARS}
    scalars["names"] = scalars["names"].astype(str)
    flat = {name: found[name].flatten().to_numpy() for name in outputs}
    return scalars | {name: flat[name].reshape(-1, *outputs[name]) for name in outputs}


def _write_arrayrecord(path: Path, features: Features) -> None:
    """Writes one record an image, itself a small .npz."""
    from array_record.python import array_record_module

    def save(file: IO[bytes]) -> None:
        try:
            writer = array_record_module.ArrayRecordWriter(file.name, "group_size:1")
            for row in range(len(features["ids"])):
                record = io.BytesIO()
                np.savez(record, **{name: array[row] for name, array in features.items()})  # type: ignore[arg-type]
                writer.write(record.getvalue())
            writer.close()
        except RuntimeError as error:  # which is all that the library raises
            raise OSError(errno.EIO, " ".join(str(error).split())) from None

    write_whole(path, save)


def _read_arrayrecord(path: Path, outputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    from array_record.python import array_record_module

    names = (*SCALARS, *outputs)
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        rows = [_record(record) for record in reader.read_all()]
        reader.close()
        columns = {name: _column(rows, name) for name in names}
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())})") from None
    return columns | {name: columns[name].reshape(-1, *outputs[name]) for name in outputs}


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """Stacks an entry of all records; of none, it has a type that does not change that of the other parts."""
    if rows:
        return np.array([row[name] for row in rows])
    return np.zeros(0, {"names": np.str_, "labels": np.int32, "ids": np.int32}.get(name, np.float16))


def _record(record: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(record), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


SUFFIXES = {"npz": "npz", "parquet": "parquet", "arrayrecord": "array_record"}
WRITERS: dict[str, Callable[[Path, Features], None]] = {
    "npz": _write_npz,
    "parquet": _write_parquet,
    "arrayrecord": _write_arrayrecord,
}
READERS: dict[str, Callable[[Path, Mapping[str, tuple[int, ...]]], dict[str, np.ndarray]]] = {
    "npz": _read_npz,
    "parquet": _read_parquet,
    "arrayrecord": _read_arrayrecord,
}
