"""What a worker process of the input pipeline does first, so that it cannot outlive or disturb the training."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

QUIET = "ignore:resource_tracker"  # what warnings begin with; an option of Python, which new processes inherit


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Surrounds the start of worker processes, so that no signal to the group reaches one before it can ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    start_quiet_tracker()  # whose own start would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_quiet_tracker() -> None:
    """Starts the process that frees shared memory, so that it does not warn of what it frees at the end.

    When the workers stop, batches that were ready lie there.
    """
    if QUIET not in sys.warnoptions:
        sys.warnoptions.append(QUIET)
    resource_tracker.ensure_running()


def initialize_worker(index: int, count: int) -> None:
    """Prepares one of `count` worker processes: no accelerator, no reaction to signals, no life after its parent."""
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Ctrl-C and a cluster's SIGTERM reach the whole process group; the training process saves first, then stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this process when the training process is gone, killed included; else it would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
