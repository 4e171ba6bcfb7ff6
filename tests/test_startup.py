import importlib.metadata
import os

import pytest

from dino_jax import command, startup


@pytest.mark.parametrize(
    ("hidden", "before", "after"),
    [
        (127, "--x", "--x"),
        (128, "--x", "--x --{}=false"),
        (128, "--{}=true", "--{}=true"),
        (64, "--{}=false", "--{}=false"),
    ],
)
def test_small_heads_do_without_the_older_loops(hidden, before, after, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", before.format(startup.OLDER_LOOPS))
    startup.choose_loops(hidden)
    assert os.environ["XLA_FLAGS"] == after.format(startup.OLDER_LOOPS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": "0.9"}),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, {}),
    ],
)
def test_training_takes_most_of_a_gpu_unless_told_otherwise(before, after, monkeypatch):
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back
        os.environ.pop(name)
    os.environ.update(before)
    assert command.run(lambda: None, trains=True) == 0
    assert {name: os.environ[name] for name in names if name in os.environ} == before | after
