"""The files of a tar or tar.gz archive, read at random without unpacking it to disk."""

import gzip
import io
import os
import posixpath
import sys
import tarfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

# Every worker process holds its own copy of an archive that was unpacked to memory.
MAX_UNPACKED_BYTES = 512 * 2**20


class TarFiles:
    """The members of an archive, and links to them; hidden files and folders are left out.

    A plain tar is indexed once and read in place. A tar.gz has no random access, so it is unpacked to memory, up to
    512 MiB.
    """

    def __init__(self, path: Path):
        """Indexes the archive.

        Raises:
          ValueError: not a tar, or a tar.gz that is too large.
        """
        self.path = path
        self._path = path.absolute()
        self._bytes = _gunzip(path) if _is_gzip(path) else None
        try:
            # "r:" refuses other compressions, in which a member's offset is not its place in the file.
            file = None if self._bytes is None else io.BytesIO(self._bytes)
            with tarfile.open(path, "r:", fileobj=file) as archive:
                places, links = _index(archive)
                if not _ends(archive):
                    words = f"it may have been cut off after {len(places)} files"
                    print(f"{path} has no mark of its end: {words}", file=sys.stderr)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is not a readable tar or tar.gz archive ({error})") from None
        targets = {name: _target(name, links) for name in links if not _is_hidden(name)}
        lost = sorted(name for name, target in targets.items() if target not in places)
        if lost:
            count = f"{len(lost)} link{'s' * (len(lost) > 1)}"
            fix = "pack it with tar --dereference"
            print(f"{path}: {count} to no file of the archive left out, such as {lost[0]}: {fix}", file=sys.stderr)
        places |= {name: places[target] for name, target in targets.items() if target in places}
        self._places = {name: place for name, place in places.items() if not _is_hidden(name)}
        self.names = tuple(sorted(self._places))

    def read(self, name: str) -> bytes:
        offset, size = self._places[name]
        if self._bytes is not None:
            return self._bytes[offset : offset + size]
        file = self._file
        try:
            return os.pread(file.fileno(), size, offset)  # no seek: threads share the file
        except OSError:
            self.__dict__.pop("_file", None)  # a network file system may want it to be opened anew
            raise

    @cached_property
    def _file(self) -> io.BufferedReader:
        return self._path.open("rb")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}


def _index(archive: tarfile.TarFile) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Returns where the files of an archive are, (offset, size) by name, and the targets of its links, by name."""
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    for member in archive:
        name = _normal(member.name)
        if member.isfile():
            places[name] = member.offset_data, member.size
            links.pop(name, None)  # of an older version of the archive
        elif member.islnk():
            links[name] = _normal(member.linkname)
        elif member.issym():
            links[name] = _normal(posixpath.join(posixpath.dirname(member.name), member.linkname))
    return places, links


def _ends(archive: tarfile.TarFile) -> bool:
    """Tells whether an empty block follows the last member; anything else ends a search as well, without an error."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    return archive.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _target(name: str, links: dict[str, str]) -> str:
    """Follows a link to its end; one that leads in a circle ends somewhere in it."""
    seen = set()
    while name in links and name not in seen:
        seen.add(name)
        name = links[name]
    return name


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def _is_gzip(path: Path) -> bool:
    """Tells a gzip file by its first two bytes."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _gunzip(path: Path) -> bytes:
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
