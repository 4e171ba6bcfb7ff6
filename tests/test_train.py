"""The loop of the trainer: in which order it does what, and what a restart takes over."""

import contextlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dino_jax import build, sharding, train
from tests.tiny_recipe import get_config


def trainer_with(**parts):
    """Returns a trainer of the tiny recipe that has these parts only."""
    trainer = train.Trainer.__new__(train.Trainer)
    trainer.config = get_config()
    trainer.phases = train.in_order(trainer.config)
    trainer.progress = SimpleNamespace(note=lambda words: None)
    vars(trainer).update(parts)
    return trainer


@pytest.mark.parametrize(
    ("stop_after", "interrupted", "saved"),
    [(None, None, [3, 6, 8]), (5, None, [3, 5]), (None, 5, [3, 5]), (None, 6, [3, 6])],
)
def test_records_are_on_disk_before_a_checkpoint_is(stop_after, interrupted, saved):
    """Checkpoints follow every third step, the end of the phase, and the step after which the run shall stop.

    They do not wait for an evaluation, which may be interrupted.
    """
    done = []

    def take(state, batch, hyper):
        return SimpleNamespace(step=state.step + 1), {"train/skipped_in_row": 0}, True

    trainer = trainer_with(
        source=SimpleNamespace(name=str),
        compiled_step=lambda phase, state: take,
        to_devices=lambda step, host: (np.arange(1), host),
        gram=SimpleNamespace(due=lambda phase, step: False),
        stop=SimpleNamespace(now=lambda: done[-1] == ("recorded", stop_after)),
        seconds=lambda: 7.5,
    )
    uncounted = SimpleNamespace(waiting=contextlib.nullcontext, paused=contextlib.nullcontext)
    record = SimpleNamespace(
        enter=lambda phase: None,
        throughput=uncounted,
        after_step=lambda phase, step, *_: done.append(("recorded", step)),
        evaluate=lambda phase, step, state: done.append(("evaluated", step)) or step != interrupted,
        sync=lambda: done.append(("on disk", done[-1][1])),
        unfinished=lambda: {"record": {"loss/total": 0.5}} if stop_after else {},
    )
    checkpoints = SimpleNamespace(save=lambda step, state, data: done.append(("saved", step, state.step, data)))

    class Batches:
        taken = 0

        def __next__(self):
            self.taken += 1

        def get_state(self):
            return {"batches_taken": self.taken}

        def close(self):
            done.append("closed")

    state, stopped = trainer.run_phase(trainer.phases[0], SimpleNamespace(step=0), Batches(), checkpoints, record)
    assert (state.step, stopped) == (saved[-1], saved[-1] in (stop_after, interrupted))
    expected = []
    for step in range(1, saved[-1] + 1):
        expected.append(("recorded", step))
        if step in saved:
            data = {"batches_taken": step, "seconds": 7.5}
            data |= {"record": {"loss/total": 0.5}} if stop_after else {}
            save = [("on disk", step), ("saved", step, step, data)]
            evaluation = [("evaluated", step)] * (step != stop_after)
            expected += evaluation + save if step == interrupted == 5 else save + evaluation
        else:
            expected.append(("evaluated", step))
    assert done == [*expected, "closed"]


@pytest.mark.parametrize(
    ("found", "continues"), [(None, False), (7, False), (8, False), (9, True), (13, True), (14, False)]
)
def test_a_restart_continues_the_data_only_within_a_phase(monkeypatch, found, continues):
    """At its first step a phase takes its own batches and Gram teacher; the second one has the steps 9 to 14."""
    batches, entered = SimpleNamespace(state=None), SimpleNamespace(step=8, gram="of the phase")
    batches.set_state = lambda state: setattr(batches, "state", state)
    monkeypatch.setattr(build, "batches", lambda config, phase, source: batches)
    gram = SimpleNamespace(enter=lambda phase, state: entered, describe=lambda phase, done: "")
    trainer = trainer_with(source=None, gram=gram)
    state, resumed = SimpleNamespace(step=found or 0), found and train.Resumed(found, {"batches_taken": 1})
    after, _ = trainer.enter(trainer.phases[1], state, resumed)
    assert (after is state) == continues
    assert (after is entered) == (not continues)
    assert batches.state == ({"batches_taken": 1} if continues else None)


def test_an_evaluation_that_was_interrupted_is_made_up_for(monkeypatch):
    """Even after the last step, where nothing but the final evaluation would be left."""
    finished, state = [], SimpleNamespace(step=14)
    record = SimpleNamespace(finish=lambda phase, *rest: finished.append((phase.name, *rest)))
    stop = SimpleNamespace(at_once=lambda words: contextlib.nullcontext())
    trainer = trainer_with(
        workdir=SimpleNamespace(path=None, write_results=lambda results: None),
        recorder=lambda resumed: contextlib.nullcontext(record),
        report=SimpleNamespace(finish=lambda state, seconds: {"knn/trained": 0.5}),
        stop=stop,
    )
    monkeypatch.setattr(train, "Checkpoints", lambda *_, **__: contextlib.nullcontext())
    for data, expected in (({"record": {"loss/total": 0.5}}, [("gram", 14, state, {"loss/total": 0.5})]), ({}, [])):
        finished.clear()
        trainer.restore = lambda checkpoints, data=data: (state, train.Resumed(14, data))
        assert trainer.run() == {"knn/trained": 0.5}
        assert finished == expected


def test_a_step_is_augmented_by_its_number():
    trainer = trainer_with(
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        key=jax.random.key(0),
        augment=lambda key, number, arrays: arrays | {"number": number},
        bad_images=SimpleNamespace(update=lambda *_: None),
    )
    host = {"global_crops": np.zeros((1, 2, 4, 4, 3), np.uint8), "ids": np.array([7]), "labels": None, "replaced": None}
    ids, batch = trainer.to_devices(5, host)
    assert ids.tolist() == [7] and batch["number"] == 4 and batch.keys() == {"global_crops", "number"}


def test_what_a_restart_takes_over(tmp_path):
    """The time that the run has taken, and scores of snapshots up to the step that it continues from."""
    forgotten, state = [], object()
    gram = SimpleNamespace(check=lambda *_, **__: None, forget_scores=lambda after: forgotten.append(after))
    trainer = trainer_with(gram=gram, backbone_like=None)
    found = SimpleNamespace(step=3, data={"seconds": 7.5, "batches_taken": 3}, state=state)
    checkpoints = SimpleNamespace(steps=lambda: [3], restore=lambda like, note: found, folder=tmp_path)
    assert trainer.restore(checkpoints) == (state, train.Resumed(3, found.data))
    assert (trainer.seconds_before, forgotten) == (7.5, [3])
