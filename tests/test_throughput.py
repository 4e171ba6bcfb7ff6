import jax
import pytest

from dino_jax.throughput import Throughput, peak_flops


class Clock:
    """A clock that only moves when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FakeDevice:
    def __init__(self, device_kind):
        self.device_kind = device_kind


@pytest.mark.parametrize(
    ("device_kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
    ],
)
def test_peak_of_known_devices(device_kind, teraflops):
    assert peak_flops(device_kind) == pytest.approx(teraflops * 1e12)


def test_peak_of_this_cpu_is_unknown():
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None


def test_throughput_leaves_out_compilation_and_pauses():
    clock = Clock()
    throughput = Throughput(flops_per_image=1e12, devices=[FakeDevice("TPU v4")] * 2, clock=clock)
    clock.now += 60  # compilation
    throughput.add(8)
    assert throughput.read() == {}
    for _ in range(4):
        with throughput.waiting():
            clock.now += 0.5
        clock.now += 1.5
        throughput.add(8)
    with throughput.paused():
        clock.now += 1000
    figures = throughput.read()
    assert figures == {
        "throughput/images_per_second": 4.0,
        "throughput/seconds_per_step": 2.0,
        "throughput/data_wait_share": 0.25,
        "throughput/mfu": pytest.approx(4 * 1e12 / (2 * 275e12)),
    }
    clock.now += 4
    throughput.add(8)
    assert throughput.read()["throughput/images_per_second"] == 2.0  # the window starts anew
    clock.now += 500
    throughput.add(8, compiled=True)  # crops of another size
    clock.now += 2
    throughput.add(8)
    assert throughput.read()["throughput/images_per_second"] == 4.0


class Running:
    """An output that becomes ready at a given time."""

    def __init__(self, clock, ready_at):
        self.clock, self.ready_at = clock, ready_at

    def is_ready(self):
        return self.clock.now >= self.ready_at


@pytest.mark.parametrize(("ready_after", "share"), [(0.0, 0.5), (1.0, 0.25), (3.0, 0.0)])
def test_waiting_counts_only_while_the_devices_are_idle(ready_after, share):
    clock = Clock()
    throughput = Throughput(devices=[FakeDevice("cpu")], clock=clock)
    throughput.add(1)
    with throughput.waiting(Running(clock, clock.now + ready_after)):
        clock.now += 2
    clock.now += 2
    throughput.add(1)
    assert throughput.read()["throughput/data_wait_share"] == share


def test_throughput_without_a_known_peak_has_no_mfu():
    clock = Clock()
    throughput = Throughput(flops_per_image=1e12, devices=[FakeDevice("cpu")], clock=clock)
    for _ in range(2):
        clock.now += 1
        throughput.add(3)
    assert "throughput/mfu" not in throughput.read()
