"""An evenly spread part of a source."""

import dataclasses
from typing import Any

from dino_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Subset:
    """At most `count` images of `source`, spread evenly over it."""

    source: Source
    count: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self.source.class_names

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self._place(index)]

    def name(self, index: int) -> str:
        """Returns the file of an image."""
        return self.source.name(self._place(index))

    def _place(self, index: int) -> int:
        return index * len(self.source) // len(self)
