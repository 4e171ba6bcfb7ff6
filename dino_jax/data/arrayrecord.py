"""Images in ArrayRecord files.

A record is the label as a signed 64-bit little-endian integer (-1 unknown) followed by the encoded image, a JPEG for
example, unchanged. `write` makes such a file. `classes.txt` beside the files names the labels, that of label 0 in its
first line; without it, classes have no names.
"""

import errno
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.data.decode import BadImage, decode
from dino_jax.data.images import patiently

LABEL = struct.Struct("<q")
CLASSES = "classes.txt"
EXTENSIONS = (".array_record", ".arrayrecord")


class ArrayRecordSource:
    """The records of one file, or of all .array_record files in a folder in alphabetical order."""

    def __init__(self, path: Path, *, decode: Callable[[bytes], np.ndarray] = decode):
        """Opens the files; `decode` turns the image of a record into an array.

        Raises:
          ValueError: array_record is not installed, there are no records, or a class is listed twice.
        """
        self._files = [str(path.absolute())] if path.is_file() else _files(path)
        self.class_names = _class_names(path.parent if path.is_file() else path)
        self._decode = decode
        try:
            self._length = len(self._records) if self._files else 0
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is not a readable ArrayRecord file ({error})") from None
        if not self._length:
            raise ValueError(f"no records found in {path} (looked for {' '.join(EXTENSIONS)})")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = patiently(lambda: self._record(index), self.name(index))
        if len(record) < LABEL.size:
            raise BadImage(f"a record of {len(record)} bytes has no label")
        (label,) = LABEL.unpack_from(record)
        if self.class_names and label >= len(self.class_names):
            raise BadImage(f"its label is {label}, but {CLASSES} names {len(self.class_names)} classes, from 0 on")
        return {"image": self._decode(record[LABEL.size :]), "label": label}

    def name(self, index: int) -> str:
        """Returns the number of the record."""
        return f"record {index}"

    def _record(self, index: int) -> bytes:
        try:
            return self._records[index]
        except RuntimeError as error:  # which is all that the library raises
            words = " ".join(str(error).split())
            if words.startswith("Corrupted"):
                raise BadImage(words) from None
            self.__dict__.pop("_records", None)  # a network file system may want it to be opened anew
            raise OSError(errno.EIO, words) from None

    @cached_property
    def _records(self) -> Any:
        return _array_record().array_record_data_source.ArrayRecordDataSource(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}


def write(path: Path, samples: Iterable[tuple[bytes, int]]) -> None:
    """Writes pairs of an encoded image and its label as an ArrayRecord file."""
    # Records are compressed in groups; a group of one is what makes random access cheap.
    writer = _array_record().array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for encoded, label in samples:
        writer.write(LABEL.pack(label) + encoded)
    writer.close()


def _class_names(folder: Path) -> tuple[str, ...]:
    """Reads the names of the classes, none where they are not listed."""
    listed = folder / CLASSES
    if not listed.is_file():
        return ()
    try:
        names = listed.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{listed} is not a text in UTF-8 ({error}): save it anew") from None
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            raise ValueError(f"{listed} has {name!r} {count} times: each line is the name of one class, without gaps")
    return tuple(names)


def _files(folder: Path) -> list[str]:
    return sorted(str(file.absolute()) for file in folder.iterdir() if file.suffix in EXTENSIONS)


def _array_record() -> Any:
    try:
        import array_record.python as package
        from array_record.python import array_record_data_source, array_record_module  # noqa: F401
    except ImportError:
        raise ValueError("data source 'arrayrecord' needs array_record: pip install -e '.[features]'") from None
    return package
