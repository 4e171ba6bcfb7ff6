"""Some images of a source, and which; two sources as one."""

import dataclasses
from typing import Any

import numpy as np

from dino_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The images of `source` at `indices`, relabelled if `labels` is given: `labels[old]` is the new label."""

    source: Source
    indices: list[int] | np.ndarray
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[int(self.indices[index])]
        label = sample["label"]
        return sample | {"label": label if self.labels is None or label < 0 else self.labels[label]}

    def name(self, index: int) -> str:
        """Returns the file of an image."""
        return self.source.name(int(self.indices[index]))


@dataclasses.dataclass(frozen=True)
class Joined:
    """The images of `first`, then those of `second`; the labels are those of `labelled`, the others have none."""

    first: Source
    second: Source

    @property
    def labelled(self) -> Source:
        """The second if its classes have names, else the first."""
        return self.second if self.second.class_names else self.first

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of `labelled`."""
        return self.labelled.class_names

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, before = (self.first, 0) if index < len(self.first) else (self.second, len(self.first))
        sample = part[index - before]
        return sample if part is self.labelled else sample | {"label": -1}

    def name(self, index: int) -> str:
        """Returns the file of an image."""
        first = len(self.first)
        return self.first.name(index) if index < first else self.second.name(index - first)


def part_of(source: Source, limit: int) -> Chosen:
    """Returns at most `limit` images of a source, spread evenly over it."""
    return Chosen(source, evenly(len(source), limit), class_names=source.class_names)


def evenly(count: int, limit: int | None) -> list[int]:
    """Returns at most `limit` of `count` indices, spread evenly from the first on."""
    wanted = count if limit is None else min(count, limit)
    return [index * count // wanted for index in range(wanted)]


def middles(count: int, limit: int) -> list[int]:
    """Returns at most `limit` of `count` indices, those in the middle of equal parts."""
    wanted = min(count, limit)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]
