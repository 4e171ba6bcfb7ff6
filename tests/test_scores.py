"""What is wrong with the images of an evaluation is said before the first step, and later does not stop a run."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from dino_jax import build, initial, phases, sharding
from dino_jax import record as records
from dino_jax.data.sources import open_path
from dino_jax.data.subset import part_of
from dino_jax.progress import Progress
from dino_jax.scores import Interrupted, Scores
from tests.data.images import encode, photograph
from tests.program import write_images
from tests.tiny_recipe import get_config


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def networks():
    return build.networks(get_config(), shards=1)


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


def open_scores(config, networks, mesh, images, *, held_out=True):
    test = open_path(str(images / "test")) if held_out else None
    return Scores(config, networks, mesh, open_path(str(images / "train")), test)


def test_an_evaluation_ends_where_the_run_is_asked_to_stop(networks, mesh, images):
    asked = []

    def interrupted():
        asked.append(None)
        return len(asked) == 2

    config = get_config()
    config.eval.knn.every, config.eval.quality.every = 2, 0
    test, train = (open_path(str(images / split)) for split in ("test", "train"))
    scores = Scores(config, networks, mesh, train, test, interrupted=interrupted)
    with pytest.raises(Interrupted):
        scores.at(2, initial.drawn(networks, mesh, seed=0))
    assert len(asked) == 2  # before it begins, and after the first batch


def test_another_set_for_k_nn_leaves_label_free_quality_to_the_run_s_images(networks, mesh, images):
    test, train = (open_path(str(images / split)) for split in ("test", "train"))
    assert len(Scores(get_config(), networks, mesh, train, test).quality_images) == len(test)
    assert len(Scores(get_config(), networks, mesh, train, test, shown=train).quality_images) == len(train)


def test_held_out_images_of_which_none_can_be_used(networks, mesh, images):
    files = sorted((images / "test").rglob("*.png"))
    for file in files[1:]:
        file.write_bytes(b"no image")
    assert open_scores(get_config(), networks, mesh, images).labelled  # one of them can
    files[0].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"data.test_path: none of 9 images that were tried can be used, such as"):
        open_scores(get_config(), networks, mesh, images)


def test_k_nn_asks_held_out_images_of_a_class_and_a_part_of_the_others_vote(networks, mesh, images, monkeypatch):
    read = []

    def extract(model, source, **settings):
        """Returns the classes as features, so that only an image without one is taken for another."""
        labels = np.array([source[index]["label"] for index in range(len(source))])
        read.append(len(source))
        return {"cls": np.eye(3, dtype=np.float32)[labels], "labels": labels, "ids": np.arange(len(source))}

    monkeypatch.setattr("dino_jax.scores.extract_features", extract)
    for split in ("train", "test"):
        (images / split / "beside.png").write_bytes(encode(photograph()))
    config = get_config()
    config.eval.knn.images, config.eval.quality.images, config.eval.knn.k = 15, 1, 3
    scores = open_scores(config, networks, mesh, images)
    assert scores.knn({}) == {"knn/teacher": 1}
    assert read == [15, 10]  # of 19, and all
    assert scores.quality({}) == {}
    assert read[2:] == [1]


def write_dense(folder, masks):
    """Writes an image with its mask for each split; returns the folder."""
    for seed, (split, mask) in enumerate(masks.items()):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        (folder / split / "images" / "a.png").write_bytes(encode(photograph(*mask.shape, seed)))
        Image.fromarray(mask).save(folder / split / "masks" / "a.png")
    return folder


def test_the_dense_score_is_of_val_and_of_the_network_at_hand(networks, mesh, images, tmp_path, monkeypatch):
    given, found = [], iter([0.25, 0.5, 0.75])

    def score(*arrays, classes):
        given.append(arrays)
        return next(found)

    monkeypatch.setattr("dino_jax.scores.quick_miou", score)
    monkeypatch.setattr(Scores, "patches", lambda self, params, images: images)
    mask = np.eye(48, 64, dtype=np.uint8)
    config = get_config()
    config.eval.dense.path = str(write_dense(tmp_path / "dense", {"train": mask, "val": 1 - mask}))
    scores = open_scores(config, networks, mesh, images)
    first, second = {"leaf": jax.numpy.zeros(1)}, {"leaf": jax.numpy.zeros(1)}
    assert [scores.of_snapshot(params) for params in (first, second)] == [0.25, 0.5]
    assert scores.dense(second) == {"dense/miou": 0.5}  # measured already
    for array, expected in zip(given[0], (photograph(48, 64, 0), mask, photograph(48, 64, 1), 1 - mask), strict=True):
        np.testing.assert_array_equal(array, expected[None])


def test_a_damaged_dense_image(networks, mesh, images, tmp_path):
    mask = np.eye(48, 64, dtype=np.uint8)
    config = get_config()
    config.eval.dense.path = str(write_dense(tmp_path / "dense", {"train": mask, "val": mask}))
    assert open_scores(config, networks, mesh, images)
    (tmp_path / "dense" / "val" / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"eval.dense.path: val/images/a.png in .*: not an image of a known format"):
        open_scores(config, networks, mesh, images)


def test_of_a_single_image_there_is_no_quality(networks, mesh, images):
    scores = open_scores(get_config(), networks, mesh, images, held_out=False)
    params = initial.drawn(networks, mesh, seed=0)
    scores.quality_images = part_of(scores.quality_images, 2)
    assert scores.quality(params).keys() >= {"quality/rankme", "quality/uniformity"}
    scores.quality_images = part_of(scores.quality_images, 1)
    assert scores.quality(params) == {}


def test_other_images_for_the_dense_score_are_noticed(networks, mesh, images, tmp_path):
    sums = set()
    for number in range(3):
        mask = np.full((48, 64), number == 1, np.uint8)
        mask[:, : 32 - number] ^= 1
        config = get_config()
        config.eval.dense.path = str(write_dense(tmp_path / str(number), {"train": mask, "val": mask}))
        sums.add(open_scores(config, networks, mesh, images).dense_checksum())
    sums.add(open_scores(get_config(), networks, mesh, images).dense_checksum())
    assert len(sums) == 4


def test_evaluation_takes_plain_attention(networks, mesh, images):
    """Any other is checked at the sizes of the crops alone, before the run."""
    fused = dataclasses.replace(networks, backbone=networks.backbone.clone(attention="cudnn"))
    found = open_scores(get_config(), fused, mesh, images).extractor(initial.drawn(networks, mesh, seed=0))
    assert found.backbone == networks.backbone and networks.backbone.attention == "xla"


def recorder_of(scores, first_backbone=dict):
    """A recorder that does nothing but evaluate."""
    recorder = records.Recorder.__new__(records.Recorder)
    recorder._scores, recorder._progress, recorder._config = scores, Progress(10), get_config()
    recorder._first_backbone, recorder._to_surpass, recorder._times_below = first_backbone, None, 0
    return recorder


STATE = SimpleNamespace(teacher={"backbone": {}}, stats=lambda network: None)


def test_an_evaluation_that_fails_is_noted(capsys):
    class Failing:
        def at(self, step, params):
            raise ValueError("the images are gone")

    assert recorder_of(Failing())._evaluate(phases.in_order(get_config())[0], 5, STATE) == {}
    assert "step 5: not evaluated: the images are gone" in "".join(capsys.readouterr())


class Measured:
    """Scores of which the accuracy at each step is known."""

    def __init__(self, accuracies, problem=None):
        self.accuracies, self.problem = accuracies, problem

    def at(self, step, params):
        return {"knn/teacher": self.accuracies[step]}

    def baselines(self, first_backbone):
        if self.problem:
            raise ValueError(self.problem)
        return {"knn/pixels": 0.35, "knn/untrained": 0.28}


def evaluate(recorder, steps, capsys):
    """Evaluates after each of the steps; returns what was said then."""
    phase = phases.in_order(get_config())[0]
    phase.options.schedules.lr.warmup = 4
    said = []
    for step in steps:
        assert recorder._evaluate(phase, step, STATE).keys() == {"knn/teacher"}  # alone: a resumed run records the same
        said.append("".join(capsys.readouterr()))
    return said


def test_what_training_must_surpass_is_said_once_and_when_it_is_missed_twice(capsys):
    accuracies = {2: 0.2, 5: 0.2, 6: 0.4, 7: 0.2, 8: 0.1}
    said = evaluate(recorder_of(Measured(accuracies)), accuracies, capsys)
    assert "NN accuracy of raw pixels is 0.3500, of the network as the run began 0.2800" in said[0]
    assert not any("raw pixels" in words for words in said[1:])
    assert ["stays below" in words for words in said] == [False] * 4 + [True]
    assert "stays below the 0.2800 with which the run began" in said[4] and "schedules.lr" in said[4]


def test_what_the_run_began_with_may_be_gone(capsys):
    said = evaluate(recorder_of(Measured({5: 0.2, 6: 0.2, 7: 0.2}, "there is no snapshot")), (5, 6, 7), capsys)
    assert "step 5: not compared with the network as the run began: there is no snapshot" in said[0]
    assert "knn/teacher 0.2000" in said[0] and "compared" not in said[1] and "below" not in said[2]


def test_what_training_must_surpass_is_measured_once(networks, mesh, images):
    scores = open_scores(get_config(), networks, mesh, images)
    drawn = []

    def first():
        drawn.append(initial.drawn(networks, mesh, seed=0))
        return drawn[-1]

    found = scores.baselines(first)
    assert scores.baselines(first) is found and len(drawn) == 1
    assert found == scores.knn_of_pixels() | scores.knn(drawn[0], "knn/untrained")
    assert open_scores(get_config(), networks, mesh, images, held_out=False).baselines(first) == {}
    assert len(drawn) == 1
