"""Images chosen by their names in a folder or archive."""

from collections.abc import Sequence
from typing import Any

from dino_jax.data.decode import BadImage, decode
from dino_jax.data.files import Files


class ImageList:
    """Images by their names in a folder or archive, cut to boxes (left, top, right, bottom) where there are any."""

    class_names: tuple[str, ...] = ()

    def __init__(self, files: Files, names: Sequence[str], boxes: Sequence[Sequence[float]] | None = None):
        self._files, self._names, self._boxes = files, tuple(names), boxes

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = decode(self._files.read(self._names[index]))
        if self._boxes is not None:
            left, top, right, bottom = (max(0, round(float(side))) for side in self._boxes[index])
            image = image[top:bottom, left:right]
            if not image.size:
                raise BadImage(f"the box {tuple(self._boxes[index])} holds no pixel")
        return {"image": image, "label": -1, "id": index}

    def name(self, index: int) -> str:
        """Returns the file, and the box if there is one."""
        box = "" if self._boxes is None else str([round(float(side)) for side in self._boxes[index]])
        return self._names[index] + box
