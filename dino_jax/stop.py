"""Turns SIGTERM (preemption) and Ctrl-C into a request to save and stop."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stopped(BaseException):
    """Ends at once what `StopRequest.at_once` surrounds; no handler of errors takes it for one."""


class StopRequest:
    """Catches the signals while it is open; a second Ctrl-C stops at once.

    Of several processes, JAX itself catches SIGTERM: a step that all of them reach is agreed on, as they must all save
    the same one. Ctrl-C then ends a process as it always does.
    """

    def __init__(self) -> None:
        self._requested = self._at_once = False
        self._before: dict[int, object] = {}

    def now(self, step: int) -> bool:
        """Tells whether to stop after `step` completed steps; to be asked after every step, in every process."""
        if jax.process_count() > 1:
            self._requested = multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Surrounds work of which nothing needs to be saved: a signal ends it with `Stopped`."""
        if self._requested and jax.process_count() == 1:
            raise Stopped
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        if self._at_once:
            raise Stopped
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step, which is saved; Ctrl-C stops at once\n")

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
