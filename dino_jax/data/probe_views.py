"""Views of images for training a probe: a random window, resized and mirrored half of the time."""

import dataclasses
from typing import Any

import numpy as np

from dino_jax.data.crops import prepared, random_window, resized_crop
from dino_jax.data.sources import Source

SCALE = (0.08, 1.0)  # of a window's area: torchvision's default, the linear probes of DINO and DINOv2


@dataclasses.dataclass(frozen=True)
class Augmented:
    """One view `(size, size, channels)` of each image of `source`; `seed` and `epoch` say which."""

    source: Source
    size: int
    seed: int
    epoch: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        window = random_window(rng, *sample["image"].shape[:2], scale=SCALE)
        image = resized_crop(prepared(sample["image"]), window, size=self.size)
        return sample | {"image": image[:, ::-1] if rng.random() < 0.5 else image}

    def name(self, index: int) -> str:
        """Returns the file and the view, so that caches of different views differ."""
        return f"{self.source.name(index)} view {self.seed}/{self.epoch}"
