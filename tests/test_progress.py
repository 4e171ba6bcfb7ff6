import io

import jax
import pytest

from dino_jax.progress import Progress, Throughput, peak_flops, table


class Clock:
    """A clock that only moves when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


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


FIGURES = {"throughput/images_per_second": 35.2, "throughput/seconds_per_step": 0.1477}


def test_plain_line_says_step_phase_loss_speed_and_time_left():
    stream = io.StringIO()
    progress = Progress(1000, stream=stream)
    progress.update(120, phase="gram", loss=8.1234, throughput=FIGURES)
    assert stream.getvalue() == "step 120/1000 [gram] loss 8.123 | 35.2 images/s | 0:02:10 left\n"


def test_plain_lines_are_few_and_mark_phases_and_the_end():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100_000, stream=stream, clock=clock)
    for step in range(1, 100_001):
        clock.now += 0.1
        progress.update(step, phase="pretrain" if step <= 50_000 else "gram", loss=1.0)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 1/100000 [pretrain]")
    assert "step 50001/100000 [gram] loss 1" in lines
    assert lines[-1].startswith("step 100000/100000")
    assert len(lines) < 250  # 10,000 seconds at a line a minute, and the denser start


def test_only_process_0_shows_anything(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(10, stream=stream)
        progress.update(5, phase="pretrain", loss=2.5)
        progress.note("saved")
        progress.close()
        assert stream.getvalue() == ""


def test_terminal_gets_a_bar_that_notes_do_not_break():
    stream = Terminal()
    progress = Progress(10, stream=stream)
    progress.update(5, phase="pretrain", loss=2.5, throughput=FIGURES)
    progress.note("saved step 5")
    progress.close()
    shown = stream.getvalue()
    assert "50%|" in shown
    assert "step 5/10 [pretrain] loss 2.5 | 35.2 images/s | 0:00:01 left" in shown
    assert "saved step 5\n" in shown


def test_table_is_aligned():
    text = table([("features", "20-NN"), ("raw pixels", 0.357), ("trained teacher", 1.0)])
    assert text.splitlines() == [
        "features          20-NN",
        "-----------------------",
        "raw pixels        35.7%",
        "trained teacher  100.0%",
    ]
