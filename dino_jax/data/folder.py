"""The files of a folder, nested in any way."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class FolderFiles:
    """The files below a folder, hidden files and folders left out."""

    def __init__(self, path: Path, names: Iterable[str] | None = None):
        """Takes the names of the files, or lists the folder.

        Raises:
          ValueError: when a folder cannot be listed.
        """
        self.path = path
        self._folder = path.absolute()
        self.names = tuple(sorted(_names_below(path) if names is None else names))

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"names": ()}  # which reading does not need, and there may be millions


def _names_below(folder: Path) -> Iterator[str]:
    """Yields the paths of files relative to `folder`; links are followed, but no folder is visited twice."""

    def fail(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be listed ({error.strerror}): make it readable or move it away")

    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(parent).relative_to(folder).as_posix()
        prefix = "" if place == "." else f"{place}/"
        yield from (prefix + file for file in files if not file.startswith("."))
