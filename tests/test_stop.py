import os
import pty
import signal
import subprocess
import sys

import jax
import pytest
from jax.experimental import multihost_utils

from dino_jax import command
from dino_jax.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_kept_until_the_step_ends(number, capfd):
    with StopRequest() as stop:
        assert not stop.now()
        os.kill(os.getpid(), number)
        assert stop.now()
    assert "stopping after this step" in capfd.readouterr().err


class Left(BaseException):
    pass


@pytest.fixture
def leaving(monkeypatch):
    """Raises Left where the process would have ended."""

    def leave(code, words):
        raise Left(code, words)

    monkeypatch.setattr(command, "leave", leave)


def test_a_second_interrupt_ends_the_process(leaving):
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Left) as left:
            os.kill(os.getpid(), signal.SIGINT)
    assert left.value.args == (130, "interrupted: the last checkpoint is kept")


def test_what_needs_no_saving_ends_at_once(leaving):
    with StopRequest() as stop:
        with pytest.raises(Left) as left, stop.at_once("all is saved"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert left.value.args == (0, "all is saved")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Left), stop.at_once("all is saved"):
            raise AssertionError("it was asked to stop before")


def test_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_outlives_its_terminal(tmp_path):
    """A process on a pseudo-terminal whose other end is closed gets SIGHUP, and has still to save."""
    program = (
        "import fcntl, sys, termios, time; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from dino_jax.command import lasting_streams\n"
        "from dino_jax.stop import StopRequest\n"
        "with lasting_streams(), StopRequest() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.now(): time.sleep(0.05)\n"
        "    print('nobody reads this', flush=True); print('nor this', file=sys.stderr, flush=True)\n"
        "open(sys.argv[1], 'w').write('saved')\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", program, str(tmp_path / "saved")]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    said = b""
    while b"ready" not in said:
        said += os.read(ours, 1000)
    os.close(ours)
    assert child.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "saved"


def test_a_run_outlives_who_reads_its_output(tmp_path):
    """As with `2>&1 | tee log`, which Ctrl-C ends as well."""
    program = (
        "import sys, time\n"
        "from dino_jax.command import run\n"
        "from dino_jax.stop import StopRequest\n"
        "def work():\n"
        "    with StopRequest() as stop:\n"
        "        print('ready', flush=True)\n"
        "        while not stop.now(): time.sleep(0.05)\n"
        "        print('nobody reads this', flush=True); print('nor this', file=sys.stderr, flush=True)\n"
        "    print(1000 * 'not flushed ')\n"
        "    open(sys.argv[1], 'w').write('saved')\n"
        "sys.exit(run(work))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "saved")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout.readline() == b"ready\n"
    child.stdout.close()
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "saved"


def test_of_several_processes_the_steps_since_the_start_are_counted(monkeypatch):
    """JAX agrees on a number above those it was asked for, from 0 on, which the steps of a restart are beyond."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number))
    with StopRequest() as stop:
        for _ in range(3):
            stop.now()
    assert asked == [1, 2, 3]


def test_of_several_processes_sigterm_ends_the_evaluation(leaving, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop, pytest.raises(Left) as left, stop.at_once("all is saved"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.args == (0, "all is saved")
    assert signal.getsignal(signal.SIGTERM) == before


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
