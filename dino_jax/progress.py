"""Shows how a run goes: the progress bar or lines, and the final table."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import jax
from tqdm import tqdm


class Progress:
    """Shows a bar on a terminal and, elsewhere, plain lines that stay readable in a log file.

    Plain lines come at the first and last step, at each new phase, and otherwise `interval` seconds apart; the distance
    grows by a tenth each time up to a minute, so that a run of days does not write a log of millions of lines. Of
    several processes only the first shows anything.
    """

    LONGEST_INTERVAL = 60.0

    def __init__(
        self,
        total_steps: int,
        *,
        stream: TextIO | None = None,
        interval: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Prepares to show a run of `total_steps` on `stream` (default: standard error)."""
        self._stream = sys.stderr if stream is None else stream
        self._total, self._interval, self._clock = total_steps, interval, clock
        self._phase: str | None = None
        self._last_line = -math.inf
        self._bar: tqdm | None = None
        self._silent = jax.process_index() != 0

    def update(self, step: int, *, phase: str, loss: float, throughput: Mapping[str, float] | None = None) -> None:
        """Shows `step` completed steps; `throughput` is what `Throughput.read` returned last, if anything."""
        text = self._text(step, phase, loss, throughput or {})
        if self._bar is None and self._stream.isatty() and not self._silent:
            layout = "{percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=self._total, initial=step, file=self._stream, bar_format=layout, dynamic_ncols=True)
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(text)
        elif step == self._total or phase != self._phase or self._clock() - self._last_line >= self._interval:
            self.note(text)
            self._last_line = self._clock()
            self._interval = min(1.1 * self._interval, self.LONGEST_INTERVAL)
        self._phase = phase

    def _text(self, step: int, phase: str, loss: float, throughput: Mapping[str, float]) -> str:
        text = f"step {step}/{self._total} [{phase}] loss {loss:.4g}"
        if throughput:
            seconds = round((self._total - step) * throughput["throughput/seconds_per_step"])
            left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
            text += f" | {throughput['throughput/images_per_second']:.1f} images/s | {left} left"
        return text

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif not self._silent:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def table(rows: Sequence[Sequence[str | float]]) -> str:
    """Formats rows of cells, the first row the heading, as aligned text; floats are shares and shown as percentages.

    The first column is aligned left, the others right.
    """
    cells = [[f"{cell:.1%}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
