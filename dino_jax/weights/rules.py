"""The table of a layout: lines that pair our parameters with the tensors of a checkpoint, usable in both directions.

    blocks/mlp/w1/kernel + blocks/mlp/w2/kernel = blocks.{i}.mlp.w12.weight : linear

On the left our paths, on the right names there, then a codec of `codecs.CODECS`. `{i}` numbers the blocks, which we
stack on a leading axis; `{s}` numbers the stages of a convolutional network, from 0, `{l}` the same from 1, and `{b}`
the blocks of a stage that we do not stack. A name may begin with `?`: it may be absent,
and is then zero; `-` stands for one that this layout never has. A line that begins with `same` is a second name of a
parameter that another line gives. Lines about parameters that an architecture does not have are skipped.
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from dino_jax.weights.codecs import CODECS, Codec

Place = dict[str, int]

ABSENT = "-"
STAGES = 4  # of the convolutional networks
LONGEST_STAGE = 64  # blocks; ResNet-152 has 36


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      ours: paths in our tree, "/"-separated.
      theirs: names in the checkpoint, or `ABSENT`.
      may_lack: which of these names may be absent.
      duplicate: whether another line gives the same parameter.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    codec: Codec
    may_lack: tuple[bool, ...]
    duplicate: bool

    @property
    def stacked(self) -> bool:
        """Whether the line stands for all blocks."""
        return any("{i}" in name for name in self.theirs)

    def to_ours(self, theirs: list[np.ndarray]) -> list[np.ndarray]:
        """Converts the tensors of one block."""
        return self.codec.to_ours(theirs, len(self.ours))

    def to_theirs(self, ours: list[np.ndarray]) -> list[np.ndarray]:
        """Converts the parameters of one block; includes those that this layout never has."""
        return self.codec.to_theirs(ours, len(self.theirs))

    def places(self) -> Iterator[Place]:
        """Yields all that `{s}`, `{l}` and `{b}` may stand for in this line."""
        paths = " ".join(self.ours)
        for stage in range(STAGES if "{s}" in paths else 1):
            for block in range(LONGEST_STAGE if "{b}" in paths else 1):
                yield {"s": stage, "l": stage + 1, "b": block}

    def names(self, place: Place, block: int) -> list[str]:
        """Returns the names there of one block."""
        return [name.format(**place, i=block) for name in self.theirs]

    def paths(self, place: Place) -> list[str]:
        """Returns our paths."""
        return [path.format(**place) for path in self.ours]

    def word(self) -> str:
        """Says in a few words what happens to the tensors on their way to us."""
        out = [self.codec.word]
        out += ["joined"] if len(self.theirs) > 1 and len(self.ours) == 1 else []
        out += ["split"] if len(self.ours) > 1 and len(self.theirs) == 1 else []
        return ", ".join([*out, "stacked"] if self.stacked else out)


def table(text: str) -> tuple[Rule, ...]:
    """Reads the lines of a table; empty ones and those beginning with # are skipped."""
    return tuple(_lines(text))


def _lines(text: str) -> Iterator[Rule]:
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(same )?(.+?) = (.+?) : (\w+)", re.sub(r" +", " ", line))
        assert match, line
        names = match[3].split(" + ")
        yield Rule(
            ours=tuple(match[2].split(" + ")),
            theirs=tuple(name.removeprefix("?") for name in names),
            codec=CODECS[match[4]],
            may_lack=tuple(name.startswith("?") or name == ABSENT for name in names),
            duplicate=bool(match[1]),
        )
