"""Schedules: what a hyper-parameter is at a step, in float64 on the host."""

import dataclasses
import math
from collections.abc import Callable

Schedule = Callable[[int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """A line from `start` to `peak`, a cosine from `peak` to `end`, then `end` for ever (DINOv3).

    The warm-up leaves out its end point, so that step `warmup` is the first at `peak`; the cosine includes its own,
    so that its last step is exactly `end`.

    Attributes:
      start: value at step 0, if there is a warm-up.
      peak: value at step `warmup`, unless `cosine` is 0.
      end: value at step `warmup + cosine - 1` (`warmup + 1` if `cosine` is 1) and after.
      total: steps of the phase; used where `cosine` is None.
      warmup: steps of the warm-up.
      cosine: steps of the cosine; None for all that are left of `total`. 1 gives `peak` once and then `end`.

    Raises:
      ValueError: when the steps are negative or do not fit into `total`.
    """

    start: float
    peak: float
    end: float
    total: int
    warmup: int = 0
    cosine: int | None = None

    def __post_init__(self):
        if self.warmup < 0 or (self.cosine or 0) < 0 or self.warmup + (self.cosine or 0) > self.total:
            raise ValueError(
                f"schedule: warmup={self.warmup} and cosine={self.cosine} do not fit into total={self.total} steps; "
                "shorten them or lengthen the run."
            )

    def __call__(self, step: int) -> float:
        """Returns the value at `step` (from 0; any number beyond the end)."""
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        cosine = self.total - self.warmup if self.cosine is None else self.cosine
        position = step - self.warmup
        if position >= cosine:
            return self.end
        return _cosine(self.peak, self.end, math.pi * position / max(cosine - 1, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Zeros, a line from `start` to `base`, a cosine from `base` towards `end` (DINO, DINOv2, and DINOv3's first form).

    Differs from `WarmupCosine` at the seams: the warm-up includes its end point, so that `base` appears twice, and
    the cosine stops one step short of `end`, which is reached at step `total`.

    Attributes:
      base: value at the end of the warm-up.
      end: value at step `total` and after.
      total: steps of the run.
      warmup: steps of the warm-up.
      start: value at the first step of the warm-up.
      freeze: steps at 0 before the warm-up.
      truncated: share of extra steps by which the cosine is longer than the run; it is cut off at `total` and
        stretched downwards so that its last step is `end`. 0 for the plain cosine.

    Raises:
      ValueError: when the steps are negative or do not fit into `total`.
    """

    base: float
    end: float
    total: int
    warmup: int = 0
    start: float = 0.0
    freeze: int = 0
    truncated: float = 0.0

    def __post_init__(self):
        if min(self.warmup, self.freeze, self.truncated) < 0 or self.warmup + self.freeze > self.total:
            raise ValueError(
                f"schedule: freeze={self.freeze} and warmup={self.warmup} do not fit into total={self.total} steps "
                f"(truncated={self.truncated}); shorten them or lengthen the run."
            )

    def __call__(self, step: int) -> float:
        """Returns the value at `step` (from 0; any number beyond the end)."""
        if step >= self.total:
            return self.end
        if step < self.freeze:
            return 0.0
        step -= self.freeze
        if step < self.warmup:
            return self.start + (self.base - self.start) * step / max(self.warmup - 1, 1)
        length = self.total - self.freeze - self.warmup
        position = step - self.warmup
        if not self.truncated:
            return _cosine(self.base, self.end, math.pi * position / length)
        angle = math.pi / max(int((1 + self.truncated) * length) - 1, 1)
        lowest = _cosine(1.0, 0.0, angle * (length - 1))
        share = (_cosine(1.0, 0.0, angle * position) - lowest) / (1 - lowest)
        return self.end + (self.base - self.end) * share


@dataclasses.dataclass(frozen=True)
class FrozenStart:
    """0 for the first `steps` steps, then `schedule`: the learning rate of what is frozen at first."""

    schedule: Schedule
    steps: int

    def __call__(self, step: int) -> float:
        """Returns the value at `step`."""
        return 0.0 if step < self.steps else self.schedule(step)


def learning_rate_scale(rule: str, batch_size: int) -> float:
    """Returns the factor by which a recipe's learning rate is scaled to the global batch size.

    Args:
      rule: "none"; "linear_wrt_256", batch / 256; "sqrt_wrt_1024", 4 * sqrt(batch / 1024), where the factor 4 is the
        references' (four times the recipe's figure at batch 1024).
      batch_size: images per step over all devices.

    Raises:
      ValueError: when the rule is unknown.
    """
    match rule:
        case "none":
            return 1.0
        case "linear_wrt_256":
            return batch_size / 256
        case "sqrt_wrt_1024":
            return 4 * math.sqrt(batch_size / 1024)
        case _:
            raise ValueError(f"the rule for learning rates is {rule!r}: use none, linear_wrt_256 or sqrt_wrt_1024")


def _cosine(first: float, last: float, angle: float) -> float:
    """Goes from `first` at angle 0 to `last` at pi."""
    return last + 0.5 * (first - last) * (1 + math.cos(angle))
