"""A run that was killed or asked to stop continues as if nothing had happened."""

import json
import re
import shutil
import signal

import pytest

from dino_jax.build import hyper, phase_schedules
from dino_jax.metrics import read_metrics
from dino_jax.phases import in_order
from tests.tiny_recipe import get_config

pytestmark = pytest.mark.slow


def lines(workdir):
    return (workdir / "metrics.jsonl").read_bytes().splitlines()


def results(workdir):
    """Returns what results.json holds apart from time and memory."""
    stored = json.loads((workdir / "results.json").read_text())
    return {name: value for name, value in stored.items() if not name.startswith(("time/", "memory/"))}


def test_stopped_and_killed_again_and_again(program, uninterrupted, tmp_path):
    """The tiny recipe saves after steps 3, 6, 8 (the end of phase 1), 9, 12 and 14; its Gram teacher changes at 10."""
    workdir, expected = tmp_path / "run", lines(uninterrupted)
    stopped = program.train_until("SIGINT", "recorded", 5, workdir, data__workers=2)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "stopped after step 5, saved: run the same command to continue"
    assert lines(workdir) == expected[:5]
    (workdir / "results.json").write_text("{}")  # as if it had been finished before it was given more steps
    for where, step, workers, found in (
        ("saving", 8, 0, "5"),  # during the save with which the first phase ends
        ("recorded", 11, 2, "[68]"),  # between two saves of the second phase, after the refresh
    ):
        killed = program.train_until("SIGKILL", where, step, workdir, data__workers=workers)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (workdir / "results.json").exists()
        assert re.search(rf"from {re.escape(str(workdir))}/checkpoints/{found}\n", killed.stderr), killed.stderr
        assert lines(workdir) == expected[: len(lines(workdir))]
    finished = program.train(workdir)
    assert finished.returncode == 0, finished.stderr
    assert re.search(rf"from {re.escape(str(workdir))}/checkpoints/(8|9)\n", finished.stderr), finished.stderr
    assert lines(workdir) == expected
    assert results(workdir) == results(uninterrupted)


def test_schedules_count_from_the_start_of_their_phase(uninterrupted):
    found = {record["step"]: record for record in read_metrics(uninterrupted / "metrics.jsonl")}
    for phase in in_order(get_config()):
        schedules = phase_schedules(phase.options)
        for step in (phase.first + 1, phase.first + 3, phase.last):
            expected = {f"schedule/{name}": value for name, value in hyper(schedules, step - 1 - phase.first).items()}
            assert {name: found[step][name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_finished_run_only_evaluates_again(program, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "pictures").touch()  # where the folder of pictures would be
    again = program.train(tmp_path / "run", log__pictures=True)
    assert again.returncode == 0
    assert "the pictures could not be drawn" in again.stderr
    assert lines(tmp_path / "run") == lines(uninterrupted)
    assert results(tmp_path / "run") == results(uninterrupted)
