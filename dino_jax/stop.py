"""Turns SIGTERM (preemption), Ctrl-C and the end of the terminal into a request to save and stop.

No handler raises an exception: it could come anywhere, and some places swallow it, such as JAX's own callbacks.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from dino_jax import command


class StopRequest:
    """Catches the signals while it is open; a second Ctrl-C stops at once.

    With several processes, JAX itself catches SIGTERM and lets them agree on a step that all reach, as they must save
    the same one. The other signals are passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self._requested = self._interrupted = False
        self._asked = 0
        self._last_words: str | None = None
        self._before: dict[int, object] = {}

    def waits(self) -> bool:
        """Tells whether this process, being the only one, was asked to stop, in the middle of something long."""
        return self._requested and jax.process_count() == 1

    def now(self) -> bool:
        """Tells whether to stop after this step; to be asked after every step, in every process."""
        self._asked += 1
        if jax.process_count() > 1:
            # JAX settles on the number after the highest asked so far, from 0 on: steps of a run that continues would
            # be beyond it when the signal comes before the first of them.
            self._requested = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._requested

    @contextlib.contextmanager
    def at_once(self, last_words: str) -> Iterator[None]:
        """Surrounds work that leaves nothing to save: a signal ends the process, with these words and code 0."""
        self._last_words = last_words
        alone = jax.process_count() == 1
        if not alone:  # JAX would only keep it in mind for the next step, which does not come
            before = signal.signal(signal.SIGTERM, self._catch)
        if self._requested and alone:
            command.leave(0, last_words)
        try:
            yield
        finally:
            self._last_words = None
            if not alone:  # JAX's own handler is none of Python's, which cannot put it back
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._last_words is not None:
            command.leave(0, self._last_words)
        if self._interrupted and number == signal.SIGINT:
            command.leave(130, "interrupted: the last checkpoint is kept")
        self._interrupted = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._requested = True
        command.say("stopping after this step, which will be saved; Ctrl-C stops at once")

    def __enter__(self) -> "StopRequest":
        alone = jax.process_count() == 1
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if alone else (signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # which nohup sets
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
