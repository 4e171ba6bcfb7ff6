"""Images in a folder, nested in any way; first-level sub-folders, if there are any, are the classes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.data.decode import IMAGE_EXTENSIONS, decode
from dino_jax.data.files import names_below


class FolderSource:
    """All images below a folder in alphabetical order of their paths; hidden files and folders are passed over.

    In place of a folder, a single image may be given.
    """

    def __init__(self, folder: Path, *, decode: Callable[[Path], np.ndarray] = decode):
        """Lists the folder; `decode` turns a file into an array.

        Raises:
          ValueError: not a folder, or one without images.
        """
        alone = folder.is_file() and folder.name.lower().endswith(IMAGE_EXTENSIONS)
        if not folder.is_dir() and not alone:
            raise ValueError(f"{folder} is not a folder: give the one that holds the images")
        self._folder, self._decode = folder.absolute().parent if alone else folder.absolute(), decode
        self._names = [folder.name] if alone else sorted(_image_names(self._folder))
        if not self._names:
            raise ValueError(f"no images found in {folder} (looked for {' '.join(IMAGE_EXTENSIONS)})")
        self.class_names = tuple(sorted({_class_name(name) for name in self._names} - {""}))
        self._labels = {class_name: label for label, class_name in enumerate(self.class_names)}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._names[index]
        image = self._decode(self._folder / name)
        return {"image": image, "label": self._labels.get(_class_name(name), -1), "id": index}

    def name(self, index: int) -> str:
        """Returns the path of image `index` below the folder."""
        return self._names[index]


def _class_name(name: str) -> str:
    """Returns the first folder of a relative path, or "" for an image at the top."""
    return name.split("/", 1)[0] if "/" in name else ""


def _image_names(folder: Path) -> Iterator[str]:
    return (name for name in names_below(folder) if name.lower().endswith(IMAGE_EXTENSIONS))
