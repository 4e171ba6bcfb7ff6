"""Images in a tar or tar.gz archive of <class>/<id>.jpg, read at random without unpacking it to disk."""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dino_jax.data.decode import IMAGE_EXTENSIONS, decode

# Every worker process holds its own copy of an archive that was unpacked to memory.
MAX_UNPACKED_BYTES = 512 * 2**20


class TarSource:
    """The images of an archive in alphabetical order; the class is the folder that holds the image.

    A plain tar is indexed once and read in place. A tar.gz has no random access, so it is unpacked to memory, up to
    512 MiB.
    """

    def __init__(self, path: Path, *, decode: Callable[[bytes], np.ndarray] = decode):
        """Indexes the archive; `decode` turns the bytes of a member into an array.

        Raises:
          ValueError: not a tar, without images, or a tar.gz that is too large.
        """
        if path.is_dir():
            raise ValueError(f"{path} is a folder: set data.source=folder, or give the archive")
        self._path, self._decode = path.absolute(), decode
        self._bytes = gunzip(path) if is_gzip(path) else None
        members = sorted(_image_members(path, self._bytes), key=lambda member: member.name)
        if not members:
            raise ValueError(f"no images found in {path} (looked for {' '.join(IMAGE_EXTENSIONS)})")
        self._names = [member.name for member in members]
        self._offsets = [member.offset_data for member in members]
        self._sizes = [member.size for member in members]
        folders = [PurePosixPath(name).parent.name for name in self._names]
        self.class_names = tuple(sorted(set(folders) - {""}))
        labels = {class_name: label for label, class_name in enumerate(self.class_names)}
        self._labels = [labels.get(folder, -1) for folder in folders]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        offset, size = self._offsets[index], self._sizes[index]
        if self._bytes is None:
            encoded = os.pread(self._file.fileno(), size, offset)  # no seek: threads share the file
        else:
            encoded = self._bytes[offset : offset + size]
        return {"image": self._decode(encoded), "label": self._labels[index], "id": index}

    def name(self, index: int) -> str:
        """Returns the archive's member that is image `index`."""
        return self._names[index]

    @cached_property
    def _file(self) -> io.BufferedReader:
        return self._path.open("rb")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}


def is_gzip(path: Path) -> bool:
    """Tells a gzip file by its first two bytes."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def gunzip(path: Path) -> bytes:
    """Unpacks a gzip file to memory.

    Raises:
      ValueError: damaged, or of more than MAX_UNPACKED_BYTES.
    """
    try:
        with gzip.open(path) as file:
            unpacked = file.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a readable tar.gz ({error}): copy it again") from None
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"{path} unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB, too much to hold in memory: "
            "run gunzip on it once and give the .tar"
        )
    return unpacked


def _image_members(path: Path, unpacked: bytes | None) -> list[tarfile.TarInfo]:
    try:
        # "r:" refuses other compressions, in which a member's offset is not its place in the file.
        with tarfile.open(path, "r:", fileobj=None if unpacked is None else io.BytesIO(unpacked)) as archive:
            return [member for member in archive if _is_image(member)]
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a readable tar or tar.gz archive ({error})") from None


def _is_image(member: tarfile.TarInfo) -> bool:
    name = PurePosixPath(member.name).name
    return member.isfile() and not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)
