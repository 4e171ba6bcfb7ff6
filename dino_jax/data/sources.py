"""Random-access collections of labelled images, opened by name."""

import contextlib
import tarfile
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from dino_jax.data.arrayrecord import EXTENSIONS, ArrayRecordSource
from dino_jax.data.decode import IMAGE_EXTENSIONS, BadImage
from dino_jax.data.decode import decode as decode_rgb
from dino_jax.data.files import is_image
from dino_jax.data.images import open_folder, open_tar
from dino_jax.data.packaged import PackagedSource

TRIED = 16  # images that may be unreadable before a source counts as one without labels
TARS = (".tar", ".tar.gz", ".tgz")
SOURCES = ("folder", "tar", "arrayrecord")
# What `open_path` cuts from the photographs of scikit-image.
PACKAGED: dict[str, Any] = {"split": "test", "window_size": 96, "windows_per_photograph": 64}


class Source(Protocol):
    """A fixed list of images. Picklable: worker processes open their own files."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty when unknown."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns "image" (height, width, channels), uint8 or uint16, and "label" int, -1 unknown.

        Raises:
          BadImage: the image cannot be used.
        """

    def name(self, index: int) -> str:
        """Returns what a person would look for: the file, or the member of an archive."""


def has_labels(source: Source) -> bool:
    """Tells whether images have labels: named classes, two at least, or the numbers of records."""
    if source.class_names:
        return len(source.class_names) > 1
    for index in range(min(len(source), TRIED)):
        with contextlib.suppress(BadImage):
            return source[index]["label"] >= 0
    return False


def open_source(source: str, path: str, *, decode: Callable[..., Any] = decode_rgb) -> Source:
    """Opens the images of a folder or file.

    Args:
      source: "folder", "tar" or "arrayrecord".
      path: the folder or file.
      decode: turns the bytes of a file into an array.

    Raises:
      ValueError: an unknown source, a path that is missing, or one without images.
    """
    if source not in SOURCES:
        near = get_close_matches(source, SOURCES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data source must be one of {SOURCES}, got {source!r}{hint}")
    if not path:
        raise ValueError(f"it is empty, but data source {source!r} needs a path to the images")
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{place} does not exist")
    openers: dict[str, Callable[..., Source]] = {"folder": open_folder, "tar": open_tar}
    return openers.get(source, ArrayRecordSource)(place, decode=decode)


def open_path(path: str, *, decode: Callable[..., Any] = decode_rgb) -> Source:
    """Opens images where they are: a folder, an image file, a tar or tar.gz, an ArrayRecord file or folder of them.

    Args:
      path: the place, or "packaged" for the photographs that come with scikit-image.
      decode: turns the bytes of a file into an array.

    Raises:
      ValueError: a path that is missing, or one without images, or packaged photographs in another way than `decode`'s.
    """
    if path == "packaged":
        if decode is not decode_rgb:
            raise ValueError("the packaged photographs are RGB of 8 bits: give images of these channels and bits")
        return PackagedSource(**PACKAGED)
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{place} does not exist: give a folder of images, a tar or an .array_record file")
    if place.suffix in EXTENSIONS or (place.is_dir() and any(file.suffix in EXTENSIONS for file in place.iterdir())):
        return ArrayRecordSource(place, decode=decode)
    if place.is_dir() or is_image(place.name):
        return open_folder(place, decode=decode)
    if not tarfile.is_tarfile(place) and not place.name.endswith(TARS):
        raise ValueError(f"{place} is neither an image ({' '.join(IMAGE_EXTENSIONS)}) nor a tar or tar.gz")
    return open_tar(place, decode=decode)
