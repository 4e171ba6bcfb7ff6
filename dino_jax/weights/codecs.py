"""How one tensor of PyTorch becomes one of ours and back: a transposition, a reshaping, several joined or split.

A codec takes lists, because several tensors there may be one here (queries, keys and values) or the other way round
(the two input projections of a fused SwiGLU). They are joined along PyTorch's first axis, the output features, which is
our last one. No codec computes anything but sums of positions (`position_fold`), so nothing is lost.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Arrays = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Codec:
    """Two functions that undo each other; `word` is what the manifest says of them."""

    to_ours: Callable[[Arrays, int], Arrays]
    to_theirs: Callable[[Arrays, int], Arrays]
    word: str


def by_axes(axes: tuple[int, ...], word: str) -> Codec:
    """Makes the codec that permutes axes: axis i of ours is axis `axes[i]` of theirs, the last one their first."""
    back = tuple(int(i) for i in np.argsort(axes))

    def to_ours(theirs: Arrays, count: int) -> Arrays:
        joined = theirs[0] if len(theirs) == 1 else np.concatenate(theirs)
        return np.split(joined.transpose(axes), count, axis=-1) if count > 1 else [joined.transpose(axes)]

    def to_theirs(ours: Arrays, count: int) -> Arrays:
        joined = (ours[0] if len(ours) == 1 else np.concatenate(ours, axis=-1)).transpose(back)
        return np.split(joined, count) if count > 1 else [joined]

    return Codec(to_ours, to_theirs, word)


def with_ones(count: int, *, at: int = 0) -> Codec:
    """Makes the codec for a tensor that has `count` axes of length one more there, before axis `at`."""
    axes = tuple(range(at, at + count))

    def to_ours(theirs: Arrays, _: int) -> Arrays:
        # Only ones may go: another length there is a wrong shape, to be reported as such.
        fits = all(theirs[0].shape[axis : axis + 1] == (1,) for axis in axes)
        return [theirs[0].squeeze(axes) if fits else theirs[0]]

    return Codec(to_ours, lambda ours, _: [np.expand_dims(ours[0], axes)], "reshaped")


def _unfold(theirs: Arrays, _: int) -> Arrays:
    cls, positions = theirs[0], theirs[1]
    if cls.ndim != 3 or positions.ndim != 3 or cls.shape[-1] != positions.shape[-1]:
        return [cls, positions]
    return [cls[0, 0], np.concatenate([np.zeros_like(cls[0]), positions[0]])]


def _fold(ours: Arrays, _: int) -> Arrays:
    cls, positions = ours
    return [(cls + positions[0])[None, None], positions[None, 1:]]


CODECS = {
    "vector": by_axes((0,), "as it is"),
    "linear": by_axes((1, 0), "transposed"),
    "conv": by_axes((2, 3, 1, 0), "transposed"),
    "row": with_ones(1),
    "token": with_ones(2),
    "tokens": with_ones(1),
    "gain": with_ones(1, at=1),
    # timm keeps the CLS token and its position as their sum; read back, the position is zero.
    "position_fold": Codec(_unfold, _fold, "position added to CLS"),
}
