"""Turns SIGTERM (preemption) and Ctrl-C into a request to save and stop."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Catches the signals while it is open; a second Ctrl-C stops at once.

    Of several processes, JAX itself catches SIGTERM: a step that all of them reach is agreed on, as they must all save
    the same one. Ctrl-C then ends a process as it always does.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[int, object] = {}

    def now(self, step: int) -> bool:
        """Tells whether to stop after `step` completed steps; to be asked after every step, in every process."""
        if jax.process_count() > 1:
            self._requested = multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
