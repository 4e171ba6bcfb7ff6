import jax
import pytest

from dino_jax import cluster, command


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"JAX_NUM_PROCESSES": "2"},
            "JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=: with JAX_COORDINATOR_ADDRESS=localhost:1, both",
        ),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "a"}, "JAX_PROCESS_ID=a: with"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "this process cannot join the others: "),
    ],
)
def test_processes_that_cannot_join(variables, message, monkeypatch):
    def refuse(**_):
        raise RuntimeError("process_id must be below\n num_processes")

    for name, value in ({"JAX_COORDINATOR_ADDRESS": "localhost:1"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(ValueError, match=message):
        cluster.join()


def test_processes_wait_for_each_other(monkeypatch):
    given = {}
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setattr(jax.distributed, "initialize", lambda **named: given.update(named))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    cluster.join()
    assert given["initialization_timeout"] >= 600  # hundreds may import from one file system
    assert given["shutdown_timeout_seconds"] > 24 * 3600  # parts of a long extraction end far apart


def test_processes_that_come_late_are_no_wrong_input(monkeypatch):
    """Those that came may try again."""

    def give_up(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setattr(jax.distributed, "initialize", give_up)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    assert command.run(cluster.join, trains=True) == 1
