"""The parts of a run in order: which steps they take, and when their Gram teacher changes."""

import dataclasses
import re

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Phase:
    """A named part of a run: its steps are `first` + 1 to `last`, counted from 1.

    Attributes:
      options: what `config.phase` describes; its steps and schedules count from `first`.
      index: position in the run, from 0.
    """

    name: str
    options: ConfigDict
    first: int
    last: int
    index: int

    @property
    def gram(self) -> bool:
        """Tells whether the phase has a Gram teacher."""
        return self.options.gram.teacher != "none"

    @property
    def warmup_ends(self) -> int:
        """Returns the step count at which the warm-up of the learning rate ends."""
        return self.first + self.options.schedules.lr.warmup

    @property
    def own_snapshot(self) -> int | None:
        """Returns the step of the snapshot of this same run that the phase begins with, None with any other teacher."""
        match = re.fullmatch(r"gram_teacher/(\d+)", self.options.gram.teacher)
        return int(match[1]) if match else None

    @property
    def refreshes(self) -> range:
        """Returns the step counts at which the Gram teacher is copied anew.

        A refresh follows every `refresh_every`-th step of the phase that is not before `first_refresh`, at most
        `max_refreshes` times; how many there were follows from the step alone, so a resumed run agrees.
        """
        gram = self.options.gram
        if not self.gram or not gram.refresh_every:
            return range(0)
        earliest = max(1, -(-gram.first_refresh // gram.refresh_every))
        every = range(self.first + earliest * gram.refresh_every, self.last + 1, gram.refresh_every)
        return every[: gram.max_refreshes or None]

    def next_refresh(self, step: int) -> int | None:
        """Returns the first refresh after `step`, None if there is none."""
        return next((when for when in self.refreshes if when > step), None)

    def last_refresh(self, step: int) -> int | None:
        """Returns the latest refresh up to `step`, None if there was none."""
        return max((when for when in self.refreshes if when <= step), default=None)

    def snapshot_due(self, step: int) -> bool:
        """Tells whether the teacher is saved as a snapshot after `step` completed steps."""
        done, every = step - self.first, self.options.snapshot_every
        return done in self.options.snapshot_steps or bool(every and done > 0 and done % every == 0)

    def snapshots(self) -> set[int]:
        """Returns the step counts of all snapshots that the phase saves: where it says so, and new Gram teachers."""
        every = self.options.snapshot_every
        found = {self.first + step for step in self.options.snapshot_steps}
        found |= set(range(self.first + every, self.last + 1, every)) if every else set()
        return found | {*self.refreshes} | ({self.first} if self.options.gram.teacher == "ema" else set())

    def describe_sizes(self) -> str:
        """Says in words which sizes its crops have, "" for a phase with one."""
        sizes = [f"{p.crops.global_size}/{p.crops.local_size}" for _, p in by_size(self.options)]
        return f"; crops of {', '.join(sizes)} px, each compiled when it first comes" if len(sizes) > 1 else ""

    def describe_gram(self, step: int, snapshot: str) -> str:
        """Says in words which Gram teacher is in use at `step` and when the next one comes.

        Args:
          snapshot: words for the snapshot that the phase begins with, if any.
        """
        if not self.gram:
            return "no Gram teacher"
        taken, following = self.last_refresh(step), self.next_refresh(step)
        if taken is None and self.options.gram.teacher == "ema":
            taken = self.first
        origin = snapshot if taken is None else f"the EMA teacher as of step {taken}"
        return f"Gram teacher: {origin}, " + (f"next refresh at step {following}" if following else "no more refreshes")


def in_order(config: ConfigDict) -> list[Phase]:
    """Lists the phases of a run."""
    out: list[Phase] = []
    for index, name in enumerate(config.phase_order):
        first = out[-1].last if out else 0
        out.append(Phase(name, config.phases[name], first, first + config.phases[name].steps, index))
    return out


def by_size(options: ConfigDict) -> list[tuple[float, ConfigDict]]:
    """Lists (share of the batches, options) for each crop size of a phase (`crops.mixture`)."""
    mixture = options.crops.mixture
    out = [(1.0 - sum(share for share, *_ in mixture), options)]
    for share, global_size, local_size, gram_size in mixture:
        other = ConfigDict(options.to_dict())
        other.crops.update({"global_size": global_size, "local_size": local_size, "mixture": ()})
        other.gram.crop_size = gram_size
        out.append((share, other))
    return out


def check_batch(phase: Phase, shards: int) -> None:
    """Raises ValueError when a phase's batch cannot be split over `shards` devices."""
    size, group = phase.options.batch_size, phase.options.masks.group_size
    if size % shards:
        near = max(shards, round(size / shards) * shards)
        raise ValueError(
            f"phases.{phase.name}.batch_size = {size} cannot be split over {shards} devices: use {near}, "
            "or a number of devices that divides it"
        )
    if phase.options.loss.ibot and size // shards % group:
        raise ValueError(
            f"phases.{phase.name}.masks.group_size = {group} does not divide the {size // shards} samples of a device "
            f"(batch_size {size} over {shards} devices): use a divisor of {size // shards}"
        )
