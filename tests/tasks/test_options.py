"""What the command line says arrives where it counts: each task runs until then."""

import dataclasses

import numpy as np
import pytest

from dino_jax.evals import patch_head
from dino_jax.tasks import depth, discovery, head_training, open_task, segmentation, tracking
from dino_jax.tasks.patches import PixelPatches
from tests.tasks import planted
from tests.tasks.planted import PATCH, options


class Called(Exception):
    """Ends a task at a function, with what that was given."""


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Runs a task until it calls a function; returns the arguments and the named arguments of that."""

    def run(task, module, function, *words):
        def stop(*arguments, **named):
            raise Called(arguments, named)

        monkeypatch.setattr(module, function, stop)
        with pytest.raises(Called) as called:
            open_task(task).run(PixelPatches(PATCH), options(task, "--size", 0, *words), tmp_path)
        return called.value.args

    return run


@pytest.mark.parametrize(
    ("task", "write", "function", "words", "expected"),
    [
        (
            tracking,
            planted.video,
            "propagate",
            "--context 3 --radius 5 --top-k 2 --temperature 0.3",
            {"context": 3, "radius": 5, "top_k": 2, "temperature": 0.3},
        ),
        (discovery, planted.video, "token_cut", "--threshold 0.3", {"threshold": 0.3}),
        (segmentation, planted.masks, "linear_patch_probe", "--head closed --ridge 0.03", {"ridge": 0.03}),
    ],
)
def test_the_evaluation_gets_its_options(given, tmp_path, task, write, function, words, expected):
    name = task.__name__.rpartition(".")[2]
    _, named = given(name, task, function, "--data", write(tmp_path / "data"), *words.split())
    assert named.items() >= expected.items()


@pytest.mark.parametrize(
    ("task", "write", "tested", "opened"),
    [(segmentation, planted.masks, "val", "open_masks"), (depth, planted.depths, "test", "open_depths")],
)
def test_the_training_of_a_head_gets_its_options(given, monkeypatch, tmp_path, task, write, tested, opened):
    data, splits, original = write(tmp_path / "data"), [], getattr(task, opened)
    (data / tested).rename(data / "other")
    monkeypatch.setattr(task, opened, lambda path, split: splits.append(split) or original(path, split))
    name = task.__name__.rpartition(".")[2]
    training = "--steps 7 --learning-rate 0.02 --weight-decay 0.3 --batch-size 3 --seed 5"
    words = ("--data", data, "--split", "other", *training.split())
    (batches,), named = given(name, patch_head, "fit_head", *words)
    assert splits == ["train", "other"]
    assert named["schedule"] == patch_head.Schedule(steps=7, learning_rate=0.02, weight_decay=0.3)
    assert named["seed"] == 5
    assert [len(array) for array in next(batches)] == [3, 3]


@pytest.mark.parametrize(
    ("nyu", "words", "cropped"),
    [(True, (), True), (False, (), False), (True, ("--no-eigen-crop",), False), (False, ("--eigen-crop",), True)],
)
def test_the_eigen_crop_is_for_whole_frames_of_nyu(given, monkeypatch, tmp_path, nyu, words, cropped):
    opened = depth.open_depths
    monkeypatch.setattr(depth, "open_depths", lambda *place: dataclasses.replace(opened(*place), nyu=nyu))
    _, named = given("depth", depth, "depth_errors", "--data", planted.depths(tmp_path / "data", images=1), *words)
    assert named["valid"].all() != cropped


@pytest.mark.parametrize("views", [0, 3])
def test_every_view_is_a_crop_of_its_own(views):
    class Colors:
        """Pixels as they are."""

        patch_size, width = 1, 3

        def __call__(self, images):
            return images

    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    data = [(image, np.zeros((32, 48), np.uint8))] * 2
    crops = head_training.Crops(size=(8, 8), side=0, scale=(1.0, 1.0), fill=0)

    def batch(seed):
        words = ("--data", "", "--steps", 1, "--batch-size", 6, "--views", views, "--seed", seed)
        found = options("segmentation", *words)
        patches, _ = next(head_training.training_batches(Colors(), data, [0, 1], crops=crops, options=found))
        return {patch.tobytes() for patch in patches}

    assert len(batch(0)) == 6
    assert not batch(0) & batch(1)
