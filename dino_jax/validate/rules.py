"""What a single value of a configuration must be, in code and in words."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

Rule = tuple[Callable[[Any], bool], str, str]
"""What a value must be, in code and in words, and the keys of which that is true."""

ABOVE_0 = (lambda v: v > 0, "above 0")
NOT_NEGATIVE = (lambda v: v >= 0, "0 or more")
AT_LEAST_1 = (lambda v: v >= 1, "1 or more")
SHARE = (lambda v: 0 <= v <= 1, "between 0 and 1")
BELOW_1 = (lambda v: 0 <= v < 1, "0 or more and below 1")


def values(c: ConfigDict, prefix: str, choices: dict[str, tuple], rules: tuple[Rule, ...]) -> Iterator[str]:
    """Finds values of a configuration that break `choices` (by key, what is allowed) or `rules`; `prefix` names it."""
    for key, allowed in choices.items():
        yield from check(c, prefix, key, allowed.__contains__, _one_of(allowed))
    for good, words, keys in rules:
        for key in keys.split():
            yield from check(c, prefix, key, good, words)


def not_multiple(key: str, size: int, patch: int, whose: str = "model.patch_size = ") -> Iterator[str]:
    """Finds an image side that patches do not fill; `whose` says what their side is."""
    if size % patch:
        near = max(patch, round(size / patch) * patch)
        yield f"{key} = {size} is not a multiple of {whose}{patch}: use {near}"


def single_patch(key: str, size: int, patch: int, *, whole: bool = False) -> Iterator[str]:
    """Finds an image side of a single patch, which has no other to be compared with; `whole` counts no parts of one."""
    if size <= patch or (whole and size < 2 * patch):
        yield f"{key} = {size} holds a single patch: use {2 * patch} or more"


def largest(schedule: ConfigDict) -> float:
    """Returns the largest value that a schedule takes; without a warm-up it never takes that of its start."""
    return max(schedule.peak, schedule.end, *([schedule.start] if schedule.warmup else []))


def check(c: ConfigDict, prefix: str, key: str, good: Callable[[Any], bool], allowed: str) -> Iterator[str]:
    """Finds whether the value of `key` is not `good`, which `allowed` puts into words."""
    value: Any = c
    for name in key.split("."):
        if name not in value and key.startswith("model."):
            return  # an option of other networks
        value = value[name]
    if not good(value):
        yield f"{prefix}{key} = {value!r} must be {allowed}"


def _one_of(allowed: tuple) -> str:
    return f"one of {', '.join(map(str, allowed))}"
