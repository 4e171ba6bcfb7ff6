"""Measures how fast a run goes: images per second, the wait for data, and the share of the devices' peak (MFU)."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

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

    A step that had to be compiled is not counted, and the clock starts at its end, as at that of the first. Steps run
    asynchronously, so wait for the result of such a step before `add`, and for that of the last one before `read`.
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
        self._restart()

    def _restart(self) -> None:
        """Begins a new window."""
        self._start: float | None = None
        self._images = self._steps = 0
        self._waited = self._paused = 0.0

    def add(self, images: int, *, compiled: bool = False) -> None:
        """Counts one finished step over `images` images (the global batch), unless it had to be compiled before."""
        if self._start is None or compiled:
            self._restart()
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
        self._restart()
        self._start = now
        return figures


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 peak of a device in FLOP/s by its `jax.Device.device_kind`, None when unknown."""
    known = (peak for name, peak in PEAK_TFLOPS if name.lower() in device_kind.lower())
    return next((peak * 1e12 for peak in known), None)
