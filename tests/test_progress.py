import io

import jax

from dino_jax.progress import Progress, table
from tests.test_throughput import Clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


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
