"""Windows cut from the photographs that scikit-image installs: a small labelled data set that needs no download."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image

from dino_jax.data.decode import decode

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SPLITS = ("train", "test")
ZOOM = (0.7, 1.4)  # side of a window in the photograph over its side in the sample, log-uniform
TEST_EVERY = 3  # every third diagonal of cells is held out

Box = tuple[int, int, int, int]
"""Top, left, bottom, right."""


class PackagedSource:
    """Square windows at random places and scales; the label is the photograph.

    Each photograph is cut into a grid of cells. Cells on every third diagonal are held out, and a window stays inside
    one cell, so training and held-out windows share no pixel, and yet both see all parts of the photograph. The
    windows are fixed: window i is the same in every run.
    """

    def __init__(self, *, split: str, window_size: int, windows_per_photograph: int):
        """Chooses the windows.

        Args:
          split: "train" or "test".
          window_size: side of the samples in pixels.
          windows_per_photograph: windows of each photograph.

        Raises:
          ValueError: an unknown split, or windows that do not fit the smallest photograph.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS} for the packaged photographs, got {split!r}")
        self._split = split
        self._size = window_size
        self._windows = windows_per_photograph
        self._cells = [
            split_cells(*read_photograph(name).shape[:2], window_size=window_size, name=name)[split]
            for name in PHOTOGRAPHS
        ]
        self.class_names = tuple(Path(name).stem for name in PHOTOGRAPHS)

    def __len__(self) -> int:
        return len(PHOTOGRAPHS) * self._windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        photograph = index // self._windows
        top, left, bottom, right = self.window(index)
        cut = Image.fromarray(read_photograph(PHOTOGRAPHS[photograph])[top:bottom, left:right])
        image = np.asarray(cut.resize((self._size, self._size), Image.Resampling.BICUBIC))
        return {"image": image, "label": photograph}

    def name(self, index: int) -> str:
        """Returns the photograph and the window of sample `index`."""
        return f"{PHOTOGRAPHS[index // self._windows]}{list(self.window(index))}"

    def window(self, index: int) -> Box:
        """Returns where sample `index` lies in its photograph."""
        photograph, number = divmod(index, self._windows)
        rng = np.random.default_rng((SPLITS.index(self._split), photograph, number))
        cells = self._cells[photograph]
        top, left, bottom, right = cells[rng.integers(len(cells))]
        side = min(round(self._size * math.exp(rng.uniform(*np.log(ZOOM)))), bottom - top, right - left)
        top, left = int(rng.integers(top, bottom - side + 1)), int(rng.integers(left, right - side + 1))
        return top, left, top + side, left + side


def split_cells(height: int, width: int, *, window_size: int, name: str) -> dict[str, list[Box]]:
    """Cuts a photograph into disjoint cells that hold the largest window, and deals them to the two splits."""
    least = math.ceil(window_size * ZOOM[1])
    rows, columns = height // least, width // least
    cells: dict[str, list[Box]] = {split: [] for split in SPLITS}
    for row in range(rows):
        for column in range(columns):
            box = (
                row * height // rows,
                column * width // columns,
                (row + 1) * height // rows,
                (column + 1) * width // columns,
            )
            cells["test" if (row + column) % TEST_EVERY == TEST_EVERY - 1 else "train"].append(box)
    if not all(cells.values()):
        raise ValueError(
            f"windows of {window_size} px are too large for {name} ({width} x {height}): choose 96 or less"
        )
    return cells


@lru_cache(maxsize=len(PHOTOGRAPHS))
def read_photograph(name: str) -> np.ndarray:
    """Decodes one of scikit-image's photographs once per process, to uint8 (height, width, 3)."""
    return decode(Path(skimage.data.__file__).parent / name)
