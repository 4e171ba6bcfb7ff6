"""Named arrays on disk, shard by shard: what is there is whole, or is reported and made again."""

import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.data.whole import write_json, write_whole


class Shards:
    """A folder of numbered .npz files."""

    def __init__(self, folder: Path, *, names: Sequence[str]):
        """Takes the folder, which is made when it is first written to, and the arrays that every shard has."""
        self.folder, self._names = folder, set(names)

    def path(self, number: int) -> Path:
        """Returns the file of a shard."""
        return self.folder / f"{number:05d}.npz"

    def find(self, number: int) -> dict[str, np.ndarray] | None:
        """Reads a shard if it is there and whole; says on stderr when it is there but damaged."""
        path = self.path(number)
        if not path.exists():
            return None
        try:
            return read_npz(path, names=self._names)
        except ValueError as error:
            print(f"{error}; it is computed again", file=sys.stderr)
            return None

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a shard."""
        write_whole(self.path(number), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def describe(self, about: Mapping[str, Any]) -> None:
        """Writes what the folder holds, for people."""
        write_json(self.folder / "about.json", about)


def read_npz(path: Path, *, names: set[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of a file; the zip's checksums find damage.

    Raises:
      ValueError: if it is damaged or holds other arrays than `names`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())})") from None
    if set(arrays) != names or len({len(array) for array in arrays.values()}) != 1:
        raise ValueError(f"{path} is damaged (it holds {', '.join(arrays)})")
    return arrays
