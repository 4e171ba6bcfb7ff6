"""A Gram phase that asks for the snapshot with the best dense features gets that one, and says so."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dino_jax import gram_teacher, sharding
from dino_jax.gram_teacher import GramTeachers
from dino_jax.metrics import read_metrics
from dino_jax.phases import in_order
from tests import linear_networks
from tests.data.images import encode, photograph
from tests.tiny_recipe import get_config


def selecting_phases():
    """Returns the tiny recipe's phases, the first saving snapshots 2, 4, 6 and 8, the second choosing among them."""
    config = get_config()
    config.phases.pretrain.snapshot_every = 2
    config.phases.pretrain.snapshot_steps = ()
    config.phases.gram.gram.teacher = "best_dense"
    return in_order(config)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def filled(value, gram_teacher=None):
    """Returns a state with a teacher whose backbone is one parameter, which holds one value everywhere."""
    teacher = {"backbone": {"cls_token": jnp.full(8, value, jnp.float32)}}
    return dataclasses.replace(linear_networks.state(), teacher=teacher, gram_teacher=gram_teacher)


@pytest.mark.parametrize("peak", [2, 4, 8])
def test_the_snapshot_with_the_best_dense_score_becomes_gram_teacher(tmp_path, mesh, peak):
    pretrain, gram = selecting_phases()
    notes = []
    teachers = GramTeachers(tmp_path, mesh, notes.append, lambda params: 1 - abs(float(params["cls_token"][0]) - peak))
    for step in range(1, 9):
        teachers.after_step(pretrain, step, filled(step))
    entered = teachers.enter(gram, filled(8))
    np.testing.assert_array_equal(entered.gram_teacher["cls_token"], peak)
    assert any(f"best dense features of 4 snapshots: step {peak}, dense score 1.0000" in note for note in notes)
    assert f"the snapshot of step {peak}, whose dense features are best" in teachers.describe(gram, 8)
    # A snapshot of the Gram phase's own, from a refresh, is no candidate when the phase is entered again.
    teachers.snapshot(10, filled(peak))
    assert teachers.best_dense(gram.first) == (peak, 1.0)


@pytest.mark.parametrize(
    ("teacher", "value"), [("gram_teacher/0", 1), ("gram_teacher/4", 2), ("{other}/gram_teacher/4", 3)]
)
def test_a_phase_begins_with_the_snapshot_that_it_names(tmp_path, mesh, teacher, value):
    """Of this run, also that of its initial weights, or of another run."""
    config = get_config()
    config.phases.gram.gram.teacher = teacher.format(other=tmp_path / "other")
    own, other = (GramTeachers(tmp_path / run, mesh, print) for run in ("own", "other"))
    own.snapshot(0, filled(1))
    own.snapshot(4, filled(2))
    other.snapshot(4, filled(3))
    entered = own.enter(in_order(config)[1], filled(9))
    np.testing.assert_array_equal(entered.gram_teacher["cls_token"], value)


def test_a_refresh_copies_the_ema_teacher(tmp_path, mesh):
    config = get_config()
    config.phases.gram.gram.update({"teacher": "ema", "refresh_every": 2, "max_refreshes": 1})
    _, gram = in_order(config)
    teachers = GramTeachers(tmp_path, mesh, print)
    state = teachers.enter(gram, filled(2))
    np.testing.assert_array_equal(state.gram_teacher["cls_token"], 2)
    found = []
    for step in range(gram.first + 1, gram.first + 5):
        if teachers.due(gram, step):
            state = teachers.after_step(gram, step, filled(step, state.gram_teacher))
        found.append(int(state.gram_teacher["cls_token"][0]))
    assert found == [2, gram.first + 2, gram.first + 2, gram.first + 2]
    assert (tmp_path / "gram_teacher" / str(gram.first + 2)).is_dir()


def test_scores_of_steps_that_are_taken_again_are_forgotten(tmp_path, mesh):
    teachers = GramTeachers(tmp_path, mesh, print)
    teachers.forget_scores(after=0)
    assert not teachers.scores_file.exists()
    teachers.scores_file.parent.mkdir()
    teachers.scores_file.write_text('{"0": 0.2, "50": 0.9}')
    teachers = GramTeachers(tmp_path, mesh, print)
    teachers.forget_scores(after=60)
    assert teachers.scores() == {0: 0.2, 50: 0.9}
    teachers.forget_scores(after=40)
    assert teachers.scores() == GramTeachers(tmp_path, mesh, print).scores() == {0: 0.2}


def test_a_process_knows_the_scores_that_it_does_not_write(tmp_path, mesh, monkeypatch):
    """The file that the first process writes may be seen late by the others, which choose a snapshot all the same."""
    measured = iter((0.3, 0.5, 0.4))
    teachers = GramTeachers(tmp_path, mesh, lambda words: None, lambda params: next(measured))
    teachers.forget_scores(after=0)
    monkeypatch.setattr(gram_teacher, "save_snapshot", lambda folder, params: None)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for step in (2, 4, 6):
        teachers.snapshot(step, linear_networks.state())
    assert not teachers.scores_file.exists()
    assert teachers.best_dense(6) == (4, 0.5)


def test_without_scores_it_says_what_is_missing(tmp_path, mesh):
    _, gram = selecting_phases()
    with pytest.raises(ValueError, match="no snapshot up to step 8 has a dense score"):
        GramTeachers(tmp_path, mesh, print).best_dense(gram.first)


def write_pairs(folder, rng):
    """Writes photographs with masks of two classes."""
    for split, count in (("train", 6), ("val", 3)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((48, 64), np.uint8)
            mask[:, int(rng.integers(16, 48)) :] = 1
            (folder / split / "images" / f"{number}.png").write_bytes(encode(photograph(48, 64, number)))
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")
    return folder


@pytest.mark.slow
def test_a_run_measures_dense_quality_and_selects_by_it(program, tmp_path):
    changes = {
        "eval__dense__path": write_pairs(tmp_path / "pairs", np.random.default_rng(0)),
        "eval__dense__every": 4,
        "eval__knn__every": 4,
        "eval__quality__every": 4,
        "phases__pretrain__snapshot_every": 2,
        "phases__gram__gram__teacher": "best_dense",
    }
    done = program.train(tmp_path / "run", **changes, log__pictures=True)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "gram_teacher" / "scores.json").read_text())
    candidates = {int(step): score for step, score in scores.items() if int(step) <= 8}
    assert sorted(candidates) == [2, 4, 6, 8]
    best = max(sorted(candidates), key=lambda step: candidates[step])
    assert f"best dense features of 4 snapshots: step {best}" in done.stderr
    measured = {record["step"]: record for record in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    for step in (4, 8, 12):
        assert {"knn/teacher", "dense/miou", "quality/rankme", "quality/patch_cosine"} <= measured[step].keys()
    assert measured[4]["dense/miou"] == candidates[4]
    assert (tmp_path / "run" / "pictures" / "global_against_dense.png").exists()
