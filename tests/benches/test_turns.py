import os
import time

import pytest

from dino_jax.benches import turns


def build_sleep(seconds):
    return lambda: time.sleep(seconds)


def build_nothing(message):
    raise ValueError(message)


def test_sides_alternate(monkeypatch):
    monkeypatch.setattr(turns, "PAUSE", 0.0)
    calls = []

    def side(name):
        return lambda: calls.append(name) or float(len(calls))

    times = turns.take_turns({"a": side("a"), "b": side("b")}, 2)
    assert "".join(calls) == "aabbaabb"
    assert times == {"a": [2.0, 6.0], "b": [4.0, 8.0]}  # the first of two calls does not count


def test_another_process_times_the_call_and_ends():
    with turns.Elsewhere(build_sleep, 0.05) as there:
        assert there._process.pid != os.getpid()
        assert 0.05 <= there.seconds() < 5
        assert there.seconds() >= 0.05
    assert there._process.exitcode == 0


def test_what_building_raises_arrives_here():
    with pytest.raises(ValueError, match="not here"):
        turns.Elsewhere(build_nothing, "not here")
