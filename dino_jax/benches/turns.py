"""Times calls in turn, so that whatever else a machine does slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

PAUSE = 0.2  # seconds in which the threads of the side that worked last stop waiting for more

Call = Callable[[], Any]
Timed = Callable[[], float]


def take_turns(sides: Mapping[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each side in every round; each starts with a call that does not count.

    Args:
      sides: by name, calls that return how long they took, such as `timed(call)` or `Elsewhere.seconds`.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(PAUSE)
            side()
            times[name].append(side())
    return times


def timed(call: Call) -> Timed:
    """Returns a call that returns how long `call` took, in seconds."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


class Elsewhere:
    """A call in a process of its own, where neither our threads nor our memory settings reach it."""

    def __init__(self, build: Callable[..., Call], *arguments: Any):
        """Starts the process and builds the call there, as `build(*arguments)`.

        Raises:
          Exception: what `build` raises.
        """
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        self._process.start()
        theirs.close()
        problem = self._pipe.recv()
        if problem is not None:
            self.close()
            raise problem

    def seconds(self) -> float:
        """Makes the call once and returns how long it took."""
        self._pipe.send("again")
        return self._pipe.recv()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, build: Callable[..., Call], arguments: Any) -> None:
    """Builds a call, and makes it whenever it is asked to, until the pipe ends."""
    try:
        call = timed(build(*arguments))
    except Exception as error:  # raised again where it can be shown
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(call())
