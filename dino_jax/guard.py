"""Watches for updates that were skipped because something was not finite, and stops a run that makes no others."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils


class Guard:
    """Reads each step's verdict one step later, so that the devices never wait for the host."""

    def __init__(self, *, limit: int, name: Callable[[int], str], note: Callable[[str], None]):
        """Prepares to watch.

        Args:
          limit: skipped updates in a row after which the run stops.
          name: gives the file of a sample id.
          note: takes a line for the user.
        """
        self._limit, self._name, self._note = limit, name, note
        self._pending: tuple[int, Mapping[str, jax.Array], jax.Array, np.ndarray] | None = None

    def watch(self, step: int, metrics: Mapping[str, jax.Array], finite: jax.Array, ids: np.ndarray) -> None:
        """Takes a step's outputs and judges those of the step before.

        Args:
          step: number of completed steps.
          metrics, finite: what the step returned.
          ids: of this process's samples `(batch,)`.

        Raises:
          FloatingPointError: after `limit` skipped updates in a row.
        """
        self.flush()
        self._pending = (step, metrics, finite, ids)

    def flush(self) -> None:
        """Judges the latest step; raises as `watch`."""
        if self._pending is None:
            return
        (step, metrics, finite, ids), self._pending = self._pending, None
        in_row = int(metrics["train/skipped_in_row"])
        if not in_row:
            return
        blamed = ", ".join(_not_finite(metrics))
        good = _local(finite)
        if jax.process_count() > 1:  # all come here, as the metrics are the same in all
            ids, good = (rows.ravel() for rows in multihost_utils.process_allgather((ids, good)))
        bad = [self._name(int(i)) for i, fine in zip(ids, good, strict=True) if not fine]
        if not bad:
            where = "although the CLS tokens of every sample are finite"
        elif len(bad) == len(ids):
            where = "in every sample"
        else:
            where = f"in {', '.join(bad[:8])}" + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        self._note(f"step {step}: update skipped ({in_row} in a row): {blamed} not finite, {where}")
        if in_row >= self._limit:
            raise FloatingPointError(
                f"{in_row} updates in a row were not finite (nonfinite_limit), the last at step {step} in "
                f"{blamed}, {where}: the last good checkpoint is kept; look at the images named above, the learning "
                "rate and the precision"
            )


def _not_finite(metrics: Mapping[str, jax.Array]) -> list[str]:
    """Names the loss terms that are not finite; where there are none, the total, gradients or updates that are not."""
    groups = ("loss/", "grad_norm/", "update_norm/")
    found = [name for name, value in metrics.items() if name.startswith(groups) and not np.isfinite(value)]
    # One term makes the total, every gradient and every update non-finite.
    return [name for name in found if name.startswith("loss/") and name != "loss/total"] or found


def _local(array: jax.Array) -> np.ndarray:
    """Returns this process's rows of an array that is split along its first axis."""
    parts = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    unique = {shard.index[0].start or 0: np.asarray(shard.data) for shard in parts}
    return np.concatenate(list(unique.values()))
