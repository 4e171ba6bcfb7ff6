"""INRIA Copydays: photographs and distorted copies of them."""

import dataclasses
from pathlib import PurePosixPath

import numpy as np

from dino_jax.data.decode import IMAGE_EXTENSIONS
from dino_jax.data.files import below, in_folder, open_files
from dino_jax.data.images import ImageFiles

ORIGINAL = "original"


@dataclasses.dataclass(frozen=True)
class Copies:
    """Photographs and copies; `original` `(copies,)` is the photograph that each copy shows."""

    photographs: ImageFiles
    copies: ImageFiles
    original: np.ndarray


def open_copies(path: str, subset: str = "strong") -> Copies:
    """Opens a folder or archive with `original/` and folders of copies, such as `strong/`, `jpegqual/75` or `crops/50`.

    Files are named by numbers; the first four digits of six tell the photograph, as published: 200100.jpg is the
    original of strong/200101.jpg and crops/50/200100.jpg.

    Raises:
      ValueError: a folder is missing, or a copy has no original.
    """
    files = open_files(path)
    folders = {}
    for name in (ORIGINAL, subset):
        prefix = below(files, name)
        found = {} if prefix is None else in_folder(files, f"{prefix}{name}", IMAGE_EXTENSIONS)
        if not found:
            raise ValueError(f"{path} has no folder {name}/ with images: give one with original/ and strong/")
        folders[name] = found
    originals = list(folders[ORIGINAL].values())
    index = {_block(name): number for number, name in enumerate(originals)}
    if len(index) < len(originals):
        raise ValueError(f"{path}/{ORIGINAL} has two images of one number: names must be those of Copydays")
    copies = list(folders[subset].values())
    orphans = [name for name in copies if _block(name) not in index]
    if orphans:
        raise ValueError(f"{orphans[0]} has no photograph in {ORIGINAL}/ whose name starts with {_block(orphans[0])}")
    truth = np.array([index[_block(name)] for name in copies])
    return Copies(ImageFiles(files, originals), ImageFiles(files, copies), truth)


def _block(name: str) -> str:
    """Returns the part of a file's name that its photograph and all copies share."""
    stem = PurePosixPath(name).stem
    return stem[:-2] if stem.isdigit() and len(stem) > 2 else stem
