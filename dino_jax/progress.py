"""Shows how a run goes: the progress bar or lines, images per second, the wait for data, MFU, and the final table."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax
from tqdm import tqdm

# Dense bfloat16 peak in TFLOP/s of one JAX device, by the first entry that its `device_kind` contains. TPUs from
# cloud.google.com/tpu/docs (per chip; a TPU7x, v2 or v3 device is one of the chip's two cores), GPUs from NVIDIA's
# data sheets, whose headline figures with 2:4 sparsity are halved.
PEAK_TFLOPS = (
    ("TPU v2", 23.0),
    ("TPU v3", 61.5),
    ("TPU v4 lite", 137.0),
    ("TPU v4", 275.0),
    ("TPU v5 lite", 197.0),
    ("TPU v5e", 197.0),
    ("TPU v5", 459.0),
    ("TPU v6", 918.0),
    ("TPU7x", 1153.5),
    ("A100", 312.0),
    ("H100 PCIe", 756.5),
    ("H100 NVL", 835.5),
    ("H100", 989.5),
    ("H200 NVL", 835.5),
    ("H200", 989.5),
    ("GH200", 989.5),
    ("GB200", 2500.0),
    ("B200", 2250.0),
)


class Throughput:
    """Measures images per second, the share of time spent waiting for data, and MFU between two `read` calls.

    The first `add` after the start or after `restart` ends compilation: its images are not counted and the clock starts
    there. Steps run asynchronously, so wait for that step's result before the call, and for the last one before `read`.
    """

    def __init__(
        self,
        *,
        flops_per_image: float | None = None,
        devices: Sequence[jax.Device] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Takes the model FLOPs of training on one image and the devices it runs on (default: all)."""
        devices = jax.devices() if devices is None else devices
        peak = peak_flops(devices[0].device_kind)
        self._flops_share = None if peak is None or flops_per_image is None else flops_per_image / (peak * len(devices))
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forgets the window, for instance because a new phase is about to compile its step."""
        self._start: float | None = None
        self._images = self._steps = 0
        self._waited = self._paused = 0.0

    def add(self, images: int) -> None:
        """Counts one finished step over `images` images (the global batch)."""
        if self._start is None:
            self.restart()
            self._start = self._clock()
        else:
            self._images += images
            self._steps += 1

    @contextlib.contextmanager
    def waiting(self, running: Any = None) -> Iterator[None]:
        """Counts the time inside as waiting for data.

        Steps are dispatched ahead, so a host that waits while the devices still work loses nothing. Given `running`, an
        array that the last dispatched step puts out, only the time after the end of that step counts: all of it when it
        had ended before, half when it ended meanwhile, as nobody knows when, and nothing when it still runs afterwards.
        """
        start = self._clock()
        idle_before = running is None or running.is_ready()
        yield
        idle_after = running is None or running.is_ready()
        self._waited += (self._clock() - start) * (idle_before + idle_after) / 2

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside (evaluation, checkpoint, pictures) out of all figures."""
        start = self._clock()
        yield
        self._paused += self._clock() - start

    def read(self) -> dict[str, float]:
        """Returns `throughput/...` figures since the last read, nothing before the first counted step.

        `images_per_second`, `seconds_per_step`, `data_wait_share` (0 to 1), and `mfu` (0 to 1) where the device's
        peak and the model FLOPs are known.
        """
        if self._start is None or self._steps == 0:
            return {}
        now = self._clock()
        seconds = max(now - self._start - self._paused, 1e-9)
        images_per_second = self._images / seconds
        figures = {
            "throughput/images_per_second": images_per_second,
            "throughput/seconds_per_step": seconds / self._steps,
            "throughput/data_wait_share": self._waited / seconds,
        }
        if self._flops_share is not None:
            figures["throughput/mfu"] = images_per_second * self._flops_share
        self.restart()
        self._start = now
        return figures


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 peak of a device in FLOP/s by its `jax.Device.device_kind`, None when unknown."""
    known = (peak for name, peak in PEAK_TFLOPS if name.lower() in device_kind.lower())
    return next((peak * 1e12 for peak in known), None)


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
