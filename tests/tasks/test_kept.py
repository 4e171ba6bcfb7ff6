"""Heads that are being trained survive a stop: the same command ends at the same numbers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dino_jax.tasks import depth, kept, segmentation
from dino_jax.tasks.kept import Kept
from dino_jax.tasks.patches import PixelPatches
from tests.tasks import planted
from tests.tasks.planted import PATCH, options

SMALL = ("--size", 16, "--batch-size", 8)


class Stopped(Exception):
    """Ends a training as a kill would."""


@pytest.fixture
def stopped_after(monkeypatch):
    """Keeps heads at every opportunity, and interrupts the training after a step; 0 lets it go on."""
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    monkeypatch.setattr(kept, "SHARE", np.inf)
    keep = Kept.keep

    def stop_after(last):
        def keep_and_stop(self, step, state, **named):
            keep(self, step, state, **named)
            if step == last:
                raise Stopped

        monkeypatch.setattr(Kept, "keep", keep_and_stop)

    return stop_after


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize(("task", "write"), [(segmentation, planted.masks), (depth, planted.depths)])
def test_the_head_of_a_dense_task_continues(tmp_path, capsys, stopped_after, task, write, views):
    name = task.__name__.rpartition(".")[2]
    words = ("--data", write(tmp_path / "data"), "--size", 0, "--batch-size", 3, "--steps", 60, "--views", views)
    words += ("--crop", 32) if task is segmentation else ()

    def numbers(*more):
        return task.run(PixelPatches(PATCH), options(name, *words, *more), tmp_path).numbers

    undisturbed = numbers()
    cache = ("--cache", tmp_path / "cache")
    stopped_after(25)
    with pytest.raises(Stopped):
        numbers(*cache)
    stopped_after(50)  # which the first process did not reach
    with pytest.raises(Stopped):
        numbers(*cache)
    stopped_after(0)
    assert numbers(*cache) == undisturbed
    assert numbers(*cache) == undisturbed  # the finished head is kept, too
    said = [line for line in capsys.readouterr().err.splitlines() if "continues" in line]
    assert [line.partition(",")[0] for line in said] == [f"the head continues after step {n}" for n in (25, 50, 60)]


@pytest.mark.parametrize("views", [0, 2])
def test_linear_probes_continue(evaluate, colors, tmp_path, capsys, stopped_after, views):
    words = ("--data", colors, "--epochs", 4, "--train-batch", 8, "--views", views, "--rates", 0.01, 1, *SMALL)
    undisturbed = evaluate("linear", *words).numbers
    cache = ("--cache", tmp_path / "cache")
    for last in (3, 5):  # two batches in an epoch
        stopped_after(last)
        with pytest.raises(Stopped):
            evaluate("linear", *words, *cache)
    stopped_after(0)
    assert evaluate("linear", *words, *cache).numbers == undisturbed
    said = [line for line in capsys.readouterr().err.splitlines() if "continues" in line]
    assert [line.partition(",")[0] for line in said] == [f"the head continues after step {n}" for n in (3, 5)]


def test_a_head_belongs_to_weights_images_and_options(model, tmp_path, stopped_after):
    def head(model=model, data="these", **changes):
        found = options("segmentation", "--data", "here", "--cache", tmp_path)
        vars(found).update(changes)
        return Kept(model, lambda: data, found)

    stopped_after(0)
    state = {"kernel": jnp.arange(3.0), "count": np.zeros(2, np.int64)}
    head().keep(7, state)
    again = head(out="elsewhere", split="test")
    assert again.step == 7
    restored = again.restored({"kernel": jnp.zeros(3), "count": np.ones(2, np.int64)})
    assert restored["kernel"].tolist() == [0, 1, 2] and restored["count"].tolist() == [0, 0]
    assert head(dataclasses.replace(model, params={"cls": jnp.zeros(1)})).step == 0
    assert head(data="others").step == 0
    assert head(steps=5).step == 0
    assert head(cache=None).step == 0
    head(PixelPatches(8)).keep(7, state)
    assert head(PixelPatches(16)).step == 0


def test_a_head_belongs_to_its_masks_and_classes(tmp_path, capsys):
    data = planted.masks(tmp_path / "data")
    words = ("--data", data, "--size", 0, "--crop", 32, "--steps", 5, "--batch-size", 2)
    words += ("--cache", tmp_path / "cache")

    def continues():
        segmentation.run(PixelPatches(PATCH), options("segmentation", *words), tmp_path)
        return "continues" in capsys.readouterr().err

    assert not continues() and continues()
    mask = data / "train" / "masks" / "0.png"
    planted.save(np.zeros_like(np.asarray(Image.open(mask))), mask)
    assert not continues() and continues()
    (data / "classes.txt").write_text("0 red\n1 green\n2 blue\n3 unicorn\n")
    assert not continues()


def test_heads_are_kept_now_and_then(tmp_path, monkeypatch):
    head = Kept(PixelPatches(PATCH), list, options("segmentation", "--data", "here", "--cache", tmp_path))
    head.keep(1, [np.zeros(1)])
    assert not list(tmp_path.iterdir())
    head.keep(2, [np.zeros(1)], last=True)
    assert len(list(tmp_path.iterdir())) == 1


def test_heads_that_take_long_to_write_are_kept_less_often(tmp_path, monkeypatch):
    head = Kept(PixelPatches(PATCH), list, options("segmentation", "--data", "here", "--cache", tmp_path))
    written, now = [], [0.0]

    def write(path, _):
        written.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(kept, "write_whole", write)
    monkeypatch.setattr(kept.time, "monotonic", lambda: now[0])
    head._due = 60.0
    for _ in range(40):
        head.keep(1, [np.zeros(1)])
        now[0] += 10.0
    assert written == [60, 213, 366]  # 3 / 0.02 seconds after the last


def test_a_cache_that_cannot_be_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be written to"):
        Kept(PixelPatches(PATCH), list, options("segmentation", "--data", "here", "--cache", tmp_path / "file"))


def test_a_damaged_head_is_trained_anew(tmp_path, capsys):
    found = options("segmentation", "--data", "here", "--cache", tmp_path)
    Kept(PixelPatches(PATCH), list, found).keep(9, [np.zeros(100)], last=True)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert Kept(PixelPatches(PATCH), list, found).step == 0
    assert f"{file} is damaged" in capsys.readouterr().err
