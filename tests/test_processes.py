"""Two processes of two devices each do what one process with four does, and stop and continue together."""

import re
import socket

import numpy as np
import pytest

from dino_jax.metrics import read_metrics

pytestmark = pytest.mark.slow
STEPS = 5
# A small program: what is compiled slowly by one process makes the other wait for it, and Gloo waits for 30 s at most.
CHANGES = {
    "phase_order": "('pretrain',)",
    "phases__pretrain__steps": STEPS,
    "phases__pretrain__snapshot_steps": "()",
    "phases__pretrain__crops__local_number": 1,
    "phases__pretrain__optim__freeze_last_layer": 0,
    "phases__pretrain__masks__group_size": 2,
    "mesh__fsdp": 2,
    "log__health_every": 100,
    "data__test_path": "",
    "eval__quality__every": 2,
    "eval__quality__images": 8,
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def begin(program, *commands):
    """Starts one command per process of a cluster."""
    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(len(commands))}
    return [
        program.start(*command, devices=2, JAX_PROCESS_ID=str(index), **cluster)
        for index, command in enumerate(commands)
    ]


def together(program, *commands, code=0):
    """Runs one command per process of a cluster; all shall end with `code`."""
    done = [program.finish(process) for process in begin(program, *commands)]
    assert [process.returncode for process in done] == [code] * len(commands), "\n".join(p.stderr for p in done)
    return done


def test_two_processes_stop_and_continue_as_one(program, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    one = program.finish(program.start("dino_jax.main", *program.arguments(alone, **CHANGES), devices=4))
    assert one.returncode == 0, one.stderr
    arguments = program.arguments(shared, **CHANGES)
    # SIGTERM reaches the second process only, both save the same step and exit.
    first, _ = together(
        program, ("dino_jax.main", *arguments), ("tests.signalled_run", "SIGTERM", "recorded", "2", *arguments)
    )
    assert "saved: run the same command to continue" in first.stderr
    steps = {record["step"] for record in read_metrics(shared / "metrics.jsonl")}
    assert 2 <= max(steps) < STEPS
    # They restore it and go on to the end.
    first, _ = together(program, ("dino_jax.main", *arguments), ("dino_jax.main", *arguments))
    assert f"from {shared}/checkpoints/{max(steps)}" in first.stderr
    expected, actual = (read_metrics(folder / "metrics.jsonl") for folder in (alone, shared))
    assert len(expected) == len(actual) == STEPS
    for lonely, common in zip(expected, actual, strict=True):
        assert lonely.keys() == common.keys()
        for name, value in lonely.items():
            np.testing.assert_allclose(common[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{name}, {lonely['step']}")
    assert (shared / "results.json").exists()


@pytest.fixture(scope="module")
def small_work(program, tmp_path_factory):
    """Returns two processes that have done all of `cluster_run`; the second has ended by itself, its disk full."""
    first, second = begin(program, *[("tests.cluster_run", str(tmp_path_factory.mktemp("cluster")))] * 2)
    try:
        done = program.finish(second)
    finally:
        first.kill()  # it waits for what the second does not write, until the cluster notices that this has ended
    return program.finish(first), done


@pytest.mark.parametrize(
    "message",
    [
        "differ: process 1 of 2 has a different value for seed than process 0: start all processes with the same",
        "share: process 1 does not see the files that process 0 writes into --workdir",
        "load: process 1 of 2 has a different value for the weights in init.weights than process 0",
    ],
)
def test_processes_that_cannot_work_together_say_so(small_work, message):
    for process in small_work:
        assert message in process.stdout, process.stderr


def test_damage_that_one_process_meets_is_damage_for_all(small_work):
    for process in small_work:
        assert "restored step 1, 1" in process.stdout, process.stderr
        assert "checkpoint 2 is damaged" in process.stdout


def test_each_process_decodes_its_part_of_the_pixel_baseline(small_work):
    for process in small_work:
        assert "the pixels of 7 images, in order" in process.stdout, process.stderr


def test_a_gram_snapshot_of_split_parameters_is_restored(small_work):
    for process in small_work:
        assert "snapshot 3 restored, as it was" in process.stdout, process.stderr


def test_a_full_disk_of_one_process_is_said_by_it_at_once(small_work):
    _, second = small_work
    assert second.returncode == 1
    assert re.search(
        r"error: checkpoint \d cannot be written to .*: file too large; checkpoint \d is kept", second.stderr
    )
