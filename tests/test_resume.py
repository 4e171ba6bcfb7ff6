"""A run that was killed or asked to stop continues as if nothing had happened."""

import json
import shutil
import signal

import pytest

pytestmark = pytest.mark.slow


def lines(workdir):
    return (workdir / "metrics.jsonl").read_bytes().splitlines()


def results(workdir):
    """Returns what results.json holds apart from time and memory."""
    stored = json.loads((workdir / "results.json").read_text())
    return {name: value for name, value in stored.items() if not name.startswith(("time/", "memory/"))}


def test_killed_again_and_again(program, uninterrupted, tmp_path):
    """The tiny recipe saves after steps 3, 6, 8 (the end of phase 1), 9, 12 and 14; its Gram teacher changes at 10."""
    workdir, expected = tmp_path / "run", lines(uninterrupted)
    for where, step, workers in (
        ("recorded", 5, 2),  # between two saves
        ("saving", 6, 0),  # during a save
        ("entered", 8, 0),  # just after the first phase, while its last state may still be on its way to disk
        ("recorded", 11, 2),  # in the second phase, after the refresh
    ):
        killed = program.train_until("SIGKILL", where, step, workdir, data__workers=workers)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        # A kill soon after a save may come before its end; the next save has waited for it.
        assert step < 8 or f"from {workdir}/checkpoints/" in killed.stderr
        assert lines(workdir) == expected[: len(lines(workdir))]
    finished = program.train(workdir)
    assert finished.returncode == 0, finished.stderr
    assert lines(workdir) == expected
    assert results(workdir) == results(uninterrupted)


def test_sigterm_saves_and_exits_with_0(program, uninterrupted, tmp_path):
    stopped = program.train_until("SIGTERM", "recorded", 7, tmp_path / "run")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "stopped after step 7, saved: the same command continues"
    assert lines(tmp_path / "run") == lines(uninterrupted)[:7]
    continued = program.train(tmp_path / "run")
    assert f"from {tmp_path}/run/checkpoints/7" in continued.stderr
    assert lines(tmp_path / "run") == lines(uninterrupted)
    assert results(tmp_path / "run") == results(uninterrupted)


def test_a_finished_run_only_evaluates_again(program, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    again = program.train(tmp_path / "run")
    assert again.returncode == 0
    assert lines(tmp_path / "run") == lines(uninterrupted)
    assert results(tmp_path / "run") == results(uninterrupted)
