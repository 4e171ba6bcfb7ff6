"""Images in a folder or an archive, nested in any way, and their classes if they have any."""

import errno
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.data.decode import IMAGE_EXTENSIONS, BadImage, decode
from dino_jax.data.files import Files, is_image
from dino_jax.data.folder import FolderFiles
from dino_jax.data.tar import TarFiles

# What a file system that is away for a moment answers, and how long to wait for it, in seconds: an image that is
# replaced by another one would change the run.
AWAY = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
PAUSES = (0.5, 2.0, 8.0)
# What this machine has too little of, which is no fault of the image.
SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Names(Sequence[str]):
    """Names in one piece of memory.

    A list of them takes a multiple of that, in every process that prepares batches, and long to send to each.
    """

    def __init__(self, names: Iterable[str]):
        """Takes any names that a file system has."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        start, end = self._ends[index := range(len(self))[index]], self._ends[index + 1]
        return self._bytes[start:end].decode("utf-8", "surrogateescape")


class ImageFiles:
    """Images by their names in a folder or archive."""

    def __init__(
        self,
        files: Files,
        names: Iterable[str],
        *,
        class_of: Callable[[str], str] = lambda name: "",
        decode: Callable[[bytes], np.ndarray] = decode,
    ):
        """Labels the images.

        Args:
          class_of: returns the class of a name, "" for none.
          decode: turns the bytes of a file into an array.

        Raises:
          ValueError: without images.
        """
        self._files, self._names, self._decode = files, Names(names), decode
        if not len(self._names):
            raise ValueError(f"no images found in {files.path} (looked for {' '.join(IMAGE_EXTENSIONS)})")
        self.class_names = tuple(sorted({class_of(name) for name in self._names} - {""}))
        labels = {class_name: label for label, class_name in enumerate(self.class_names)}
        self._labels = np.fromiter((labels.get(class_of(name), -1) for name in self._names), np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._names[index]
        encoded = patiently(lambda: self._files.read(name), name)
        return {"image": self._decode(encoded), "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        """Returns the path of image `index` in the folder or archive."""
        return self._names[index]


def open_folder(folder: Path, *, decode: Callable[[bytes], np.ndarray] = decode) -> ImageFiles:
    """Opens all images below a folder, whose first-level folders are the classes, or a single image.

    Raises:
      ValueError: not a folder, or one without images.
    """
    if folder.is_file() and is_image(folder.name):
        alone = FolderFiles(folder.parent, [folder.name])
        return ImageFiles(alone, alone.names, class_of=first_folder, decode=decode)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that holds the images")
    files = FolderFiles(folder)
    return ImageFiles(files, filter(is_image, files.names), class_of=first_folder, decode=decode)


def open_tar(path: Path, *, decode: Callable[[bytes], np.ndarray] = decode) -> ImageFiles:
    """Opens all images of a tar or tar.gz; the class is the folder that holds the image, wherever it is.

    Raises:
      ValueError: not a tar, without images, or a tar.gz that is too large for memory.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: set data.source=folder, or give the archive")
    files = TarFiles(path)
    return ImageFiles(files, filter(is_image, files.names), class_of=_parent, decode=decode)


def patiently(read: Callable[[], bytes], name: str) -> bytes:
    """Reads an image, again after each of the pauses while its file system is away.

    Raises:
      BadImage: if it cannot be read.
      OSError: for lack of memory or of open files.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return read()
        except OSError as error:
            pause = next(pauses, None) if error.errno in AWAY | SHORT else None
            if pause is None and error.errno in SHORT:
                raise
            if pause is None:
                raise BadImage(f"{type(error).__name__}: {error}") from None
            if pause == PAUSES[0]:
                print(f"{name} cannot be read ({error.strerror}): trying for {sum(PAUSES):g} s", file=sys.stderr)
            time.sleep(pause)


def first_folder(name: str) -> str:
    """Returns the first folder of a relative path, or "" for an image at the top."""
    return name.split("/", 1)[0] if "/" in name else ""


def _parent(name: str) -> str:
    """Returns the name of the folder that holds an image, or "" for one at the top."""
    return name.rpartition("/")[0].rpartition("/")[2]
