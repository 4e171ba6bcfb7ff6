import os
import signal

import pytest

from dino_jax.stop import Stopped, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_kept_until_the_step_ends(number, capfd):
    with StopRequest() as stop:
        assert not stop.now(1)
        os.kill(os.getpid(), number)
        assert stop.now(2)
    assert "stopping after this step" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_needs_no_saving_ends_at_once():
    with StopRequest() as stop:
        with pytest.raises(Stopped), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), stop.at_once():
            raise AssertionError("it was asked to stop before")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
