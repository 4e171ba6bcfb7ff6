import os
import signal

import pytest

from dino_jax import command
from dino_jax.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_kept_until_the_step_ends(number, capfd):
    with StopRequest() as stop:
        assert not stop.now(1)
        os.kill(os.getpid(), number)
        assert stop.now(2)
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


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
