"""The files of a data set by name, whether it is a folder, a tar or a small tar.gz."""

import os
import re
from pathlib import Path
from typing import Protocol

from dino_jax.data.decode import IMAGE_EXTENSIONS
from dino_jax.data.folder import FolderFiles
from dino_jax.data.tar import TarFiles

# Folders of maps that look like images: of pairs, DAVIS, ADE20K, VOC and CamVid.
LABELS = re.compile(
    r"^(masks|depth|annotations|segmentations|segmentation_?masks?|segmentation(class|object)(aug)?|.*annot|.*labels)$"
)


def is_image(name: str) -> bool:
    """Tells an image by the end of its name."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_label(name: str) -> bool:
    """Tells whether a file, by its relative name with forward slashes, is a mask or a depth map of a data set."""
    *folders, file = name.lower().split("/")
    return file.startswith("sync_depth_") or any(LABELS.search(folder) for folder in folders)


class Files(Protocol):
    """A fixed set of files. Picklable: worker processes open their own.

    Attributes:
      path: the folder or archive.
      names: of all files, sorted, relative, with forward slashes.
    """

    path: Path
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """Returns a file's bytes.

        Raises:
          OSError: it cannot be read.
        """


def open_files(path: str | os.PathLike) -> Files:
    """Lists a folder or an archive, hidden files left out; an image is a folder of that one file.

    Raises:
      ValueError: when the path is missing, not an archive, or a tar.gz too large for memory (see `tar`).
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{place} does not exist: give a folder, a tar or a tar.gz")
    if place.is_dir():
        return FolderFiles(place)
    return FolderFiles(place.parent, [place.name]) if is_image(place.name) else TarFiles(place)


def natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def below(files: Files, folder: str) -> str | None:
    """Returns what stands before `folder/` in the names of its files, as "" or "VOCdevkit/VOC2012/".

    The shortest of several; None when there is no such folder.
    """
    return min(_places(files, folder), key=lambda prefix: (len(prefix), prefix), default=None)


def check_alone(files: Files, folder: str) -> None:
    """Raises ValueError when a folder of that name is there more than once, as in a VOCdevkit of several years."""
    first, *others = sorted(_places(files, folder))
    if others:
        raise ValueError(f"{files.path} has {first}{folder} and {others[0]}{folder}: give the folder of one of them")


def _places(files: Files, folder: str) -> set[str]:
    found = set()
    for name in files.names:
        before, marker, _ = f"/{name}".partition(f"/{folder}/")
        if marker:
            found.add(f"{before}/".lstrip("/"))
    return found


def in_folder(files: Files, folder: str, extensions: tuple[str, ...]) -> dict[str, str]:
    """Returns the files of a folder and its subfolders by their path in it without extension.

    Raises:
      ValueError: when two differ in their extension alone.
    """
    prefix = f"{folder}/"
    found: dict[str, str] = {}
    for name in files.names:
        if name.startswith(prefix) and name.lower().endswith(extensions):
            other = found.setdefault(name.removeprefix(prefix).rpartition(".")[0], name)
            if other != name:
                raise ValueError(f"{files.path} has {other} and {name}: remove one of them")
    return found


def paired(
    what: str, first: dict[str, str], second: dict[str, str], *, all_of_second: bool = True
) -> list[tuple[str, str]]:
    """Joins the files of two folders (see `in_folder`) by name.

    Raises:
      ValueError: when a file of the first has no partner, named `what`, or with `all_of_second` one of the second none.
    """
    for here, there, missing_one, ours in ((first, second, what, "image"), (second, first, "image", what)):
        missing = sorted(set(here) - set(there)) if here is first or all_of_second else []
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ValueError(
                f"{here[missing[0]]}{more} has no {missing_one} of the same name: add it or remove the {ours}"
            )
    return [(first[key], second[key]) for key in sorted(first)]
