"""Revisited Oxford and Paris: landmark photographs, queries with boxes, and which images show the same place."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dino_jax.data.containers_pickle import read_pickle
from dino_jax.data.decode import BadImage
from dino_jax.data.files import is_image, open_files
from dino_jax.data.images import ImageFiles
from dino_jax.data.sources import Source

KINDS = ("easy", "hard", "junk")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the images of one query are, as indices into the database, int `(n,)` each."""

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """A retrieval data set: for each query the database images that are easy, hard or junk."""

    queries: Source
    database: ImageFiles
    truth: tuple[Truth, ...]


def open_landmarks(path: str) -> Landmarks:
    """Opens a folder or archive with `gnd_*.pkl` and the images, in `jpg/` or anywhere below.

    The published pickle has "imlist", "qimlist" (names without extension) and "gnd", for every query a "bbx" and the
    lists "easy", "hard" and "junk" of indices into "imlist".

    Raises:
      ValueError: files are missing, or the pickle does not say what it should.
    """
    files = open_files(path)
    pickles = [name for name in files.names if PurePosixPath(name).match("gnd_*.pkl")]
    if len(pickles) != 1:
        found = f"{len(pickles)} files" if pickles else "no file"
        raise ValueError(f"{path} holds {found} gnd_*.pkl: give the folder of one data set with its ground truth")
    content = read_pickle(files.read(pickles[0]), name=f"{path}/{pickles[0]}")
    try:
        database, queries, truth = content["imlist"], content["qimlist"], content["gnd"]
        boxes = [entry["bbx"] for entry in truth]
        truths = tuple(Truth(*(np.asarray(entry[kind], int).ravel() for kind in KINDS)) for entry in truth)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{pickles[0]} is not a revisited ground truth ({type(error).__name__}: {error})") from None
    if not queries or len(queries) != len(truths):
        raise ValueError(f"{pickles[0]} holds {len(queries)} queries and the truth of {len(truths)}")
    named = np.concatenate([getattr(t, kind) for t in truths for kind in KINDS])
    wrong = named[(named < 0) | (named >= len(database))]
    if len(wrong):
        raise ValueError(f"{pickles[0]} names image {wrong[0]} of a database of {len(database)}")
    place = {Path(name).stem: name for name in files.names if is_image(name)}
    missing = [name for name in (*database, *queries) if Path(name).stem not in place]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} images of {pickles[0]}, such as {missing[0]}.jpg")
    there = [[place[Path(name).stem] for name in names] for names in (queries, database)]
    queries, images = (ImageFiles(files, names) for names in there)
    return Landmarks(Boxed(queries, boxes), images, truths)


@dataclasses.dataclass(frozen=True)
class Boxed:
    """The images of `source`, each cut to its box (left, top, right, bottom)."""

    source: Source
    boxes: Sequence[Sequence[float]]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]
        left, top, right, bottom = (max(0, side) for side in self._box(index))
        image = sample["image"][top:bottom, left:right]
        if not image.size:
            raise BadImage(f"the box {tuple(self.boxes[index])} holds no pixel")
        return sample | {"image": image}

    def name(self, index: int) -> str:
        """Returns the file and the box."""
        return f"{self.source.name(index)}{self._box(index)}"

    def _box(self, index: int) -> list[int]:
        return [round(float(side)) for side in self.boxes[index]]
