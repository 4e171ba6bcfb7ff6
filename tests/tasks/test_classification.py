"""k-NN, linear probe and logistic regression as commands, on colours that even a drawn network tells apart."""

import argparse
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dino_jax
from dino_jax import host_memory
from dino_jax.data.decode import BadImage
from dino_jax.data.labelled import open_labelled
from dino_jax.data.sources import open_path
from dino_jax.data.subset import Chosen
from dino_jax.tasks import classes, linear, logistic, open_task, parse
from dino_jax.tasks.images import picture_of
from tests.tasks.conftest import COLORS
from tests.tasks.planted import options

SMALL = ("--size", 16, "--batch-size", 8)


def test_knn(evaluate, colors, tmp_path):
    cache = ("--cache", tmp_path / "cache")
    grid = ("--k", 1, 5, "--temperatures", 0.07, "inf", "--shots", 2, "--draws", 3, "--pixels")
    result = evaluate("knn", "--data", colors, *grid, *SMALL, *cache)
    for name in ("k1_t0.07", "k5_t0.07", "k5_tinf", "pixels_k5", "2_shot_mean"):
        assert result.numbers[f"knn/{name}"] == 1
    assert result.numbers["knn/2_shot_std"] == 0
    assert [row[0] for row in result.rows[1:3]] == ["temperature 0.07", "temperature inf"]
    # No confusions to show: the matrix and the neighbours are drawn.
    assert [path.name for path in result.pictures] == ["confusion.png", "neighbours.png"]
    assert any((tmp_path / "cache").iterdir())
    apart = evaluate("knn", "--data", colors / "train", "--test", colors / "val", "--k", 5, *SMALL, *cache)
    assert apart.numbers["knn/k5_t0.07"] == 1


def test_knn_refuses_a_k_larger_than_the_set(evaluate, colors):
    with pytest.raises(ValueError, match=r"--k \[5, 25\] must be 1 to 24, the number of training images"):
        evaluate("knn", "--data", colors, "--k", 5, 25, *SMALL)
    with pytest.raises(ValueError, match=r"--shots \[9\] must be 1 to 8, as many as a class has"):
        evaluate("knn", "--data", colors, "--k", 5, "--shots", 9, *SMALL)
    with pytest.raises(ValueError, match="must be above 0"):
        evaluate("knn", "--data", colors, "--k", 5, "--temperatures", 0, *SMALL)


def test_knn_takes_the_usual_k_of_the_images_that_can_be_used(evaluate, colors, tmp_path):
    shutil.copytree(colors, tmp_path / "data")
    for number in range(2):  # of 24 training images, 20 of which are usual
        for name in COLORS:
            (tmp_path / "data" / "train" / name / f"{number}.png").write_bytes(b"")
    found = evaluate("knn", "--data", tmp_path / "data", "--size", 16)
    assert found.numbers.keys() == {"knn/k10_t0.07"}


def test_images_that_are_gone_are_drawn_grey(colors):
    source = open_path(str(colors / "val"))
    assert picture_of(source, 0).std() > 5

    class Gone:
        def __getitem__(self, index):
            raise BadImage("gone")

    assert (picture_of(Gone(), 0) == 128).all() and picture_of(Gone(), 0).shape == (160, 160, 3)


@pytest.mark.parametrize("task", ["knn", "linear", "logistic", "quality"])
def test_features_that_are_not_finite_are_named(model, colors, tmp_path, task):
    broken = dataclasses.replace(model, params=jax.tree.map(lambda x: x * jnp.nan, model.params))
    parser = argparse.ArgumentParser()
    module = open_task(task)
    module.add_arguments(parser)
    options = parse(parser, ["--data", str(colors), "--size", "16"])
    with pytest.raises(ValueError, match="the features of tiny are not all finite; check the model that made them"):
        module.run(broken, options, tmp_path)


def test_knn_takes_the_usual_k_that_a_small_set_has(evaluate, colors):
    found = evaluate("knn", "--data", colors, *SMALL)
    assert found.rows[0] == ["k-NN accuracy", "k = 10", "k = 20"]


@pytest.mark.parametrize(("words", "expected"), [((), "centre"), (("--fit", "crop"), "crop")])
@pytest.mark.parametrize("task", ["knn", "linear", "logistic"])
def test_images_are_fitted_as_the_command_says(monkeypatch, model, task, words, expected):
    asked = []

    def extract(model, source, *, how, **settings):
        asked.append(how)
        return {"labels": np.zeros(1, int)}

    monkeypatch.setattr("dino_jax.tasks.images.extract_features", extract)
    found = options(task, "--data", "", *words)
    classes.features_of(model, [], found)
    classes.features_of(model, [], found, how="squash")
    assert asked == [expected, "squash"]


def colors_as_features(model, source, *_, **__):
    """Returns the class of each image as its features, unlike those of any other image by a little."""
    labels = np.array([source[index]["label"] for index in range(len(source))])
    own = 1e-3 * np.random.default_rng(len(source)).standard_normal((len(source), 3))
    cls = (np.eye(3)[labels] + own).astype(np.float32)
    return {"cls": cls, "mean_patch": cls, "labels": labels, "ids": np.arange(len(source))}


def test_logistic_chooses_on_held_out_images_and_fits_all(evaluate, colors, monkeypatch):
    fitted, asked = [], []

    def fit(x, labels, *, strengths, **settings):
        fitted.append((x, strengths))
        return strengths

    def predict(strengths, x):
        asked.append(x)
        return np.array([x.argmax(1) if strength == 2 else np.zeros(len(x)) for strength in strengths], int)

    for name, replaced in (("features_of", colors_as_features), ("fit", fit), ("predict", predict)):
        monkeypatch.setattr(logistic, name, replaced)
    words = ("--strengths", 1, 2, 3, "--validation", 0.25)
    numbers = evaluate("logistic", "--data", colors, *words, *SMALL).numbers
    assert (numbers["logistic/strength"], numbers["logistic/accuracy"]) == (2, 1)
    (kept, strengths), (everything, chosen) = fitted
    assert (strengths, chosen) == ((1, 2, 3), (2,))
    rows = [{tuple(row) for row in x} for x in (kept, asked[0], everything, asked[1])]
    assert [len(part) for part in rows] == [18, 6, 24, 12]
    assert rows[0] | rows[1] == rows[2]


def test_logistic(evaluate, colors):
    result = evaluate("logistic", "--data", colors, "--strengths", 0.1, 10, *SMALL)
    assert result.numbers["logistic/accuracy"] == 1
    assert result.numbers["logistic/strength"] in (0.1, 10)
    assert [path.name for path in result.pictures] == ["confusion.png", "strengths.png"]
    assert len(result.rows) == 3


def test_logistic_on_pixels(evaluate, colors):
    result = evaluate("logistic", "--data", colors, "--strengths", 0.1, 10, "--pixels", *SMALL)
    assert result.numbers["logistic/pixels_accuracy"] == result.numbers["logistic/accuracy"] == 1
    assert [row[0] for row in result.rows[1:]] == [
        *("validation", "test, chosen C"),
        *("validation of raw pixels", "test of raw pixels, chosen C"),
    ]


@pytest.mark.parametrize("views", [0, 2])
def test_linear(evaluate, colors, views, monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", 5)  # of 6 held-out and 12 test images
    options = ("--epochs", 12, "--train-batch", 8, "--rates", 1e-6, 3.0, "--views", views, "--validation", 0.25)
    result = evaluate("linear", "--data", colors, *options, *SMALL)
    assert result.numbers["linear/accuracy"] >= 0.9
    assert result.numbers["linear/rate"] == 3
    # The tiny network has three blocks.
    assert {"linear/cls_1", "linear/cls_1+patch", "linear/cls_3", "linear/cls_3+patch"} <= set(result.numbers)
    assert "rates.png" in {path.name for path in result.pictures}


def test_linear_chooses_on_held_out_training_images(evaluate, colors, monkeypatch):
    """Of two probes, one is right on those alone, the other one on the test images alone."""
    right = np.eye(3, dtype=np.float32)
    kernels = np.stack([right, np.roll(right, 1, axis=1)])

    def features(model, source, *_, **__):
        found = colors_as_features(model, source)
        return found | ({"cls": found["cls"] @ kernels[1].T} if len(source) == 12 else {})

    probe = {"cls_1": {"kernel": kernels, "bias": np.zeros((2, 3), np.float32)}}
    monkeypatch.setattr(linear, "features_of", features)
    monkeypatch.setattr(linear, "train_probes", lambda *_, **__: (probe, np.ones(3, int)))
    words = ("--rates", 1, 2, "--validation", 0.25)
    numbers = evaluate("linear", "--data", colors, *words, *SMALL).numbers
    assert [numbers[f"linear/{name}"] for name in ("rate", "validation", "accuracy")] == [1, 1, 0]


def test_pixels_of_an_image_that_is_lost(colors, tmp_path):
    """Its features may still be in the cache; no other image takes its place."""
    shutil.copytree(colors, tmp_path / "data")
    data = open_labelled(str(tmp_path / "data"))
    train, test = ({"ids": np.arange(len(source))} for source in (data.train, data.test))
    assert classes.pixels_of(data, train, test)[1].shape == (12, 768)
    (tmp_path / "data" / "val" / "green" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"green/1\.png cannot be read any more: restore it, or delete --cache"):
        classes.pixels_of(data, train, test)


def test_linear_takes_as_many_images_at_once_as_it_is_told(model, colors):
    """A batch of the probe may be too large for the network."""
    train = open_path(str(colors / "train"))
    whole, parts = (
        list(
            linear._on_the_fly(
                model,
                Chosen(train, range(24)),
                options("linear", "--data", "", "--epochs", 1, "--size", 16, "--batch-size", at_once),
                blocks=2,
                batch_size=10,
            )
        )
        for at_once in (16, 4)
    )
    assert len(whole) == len(parts) == 2
    for (one, labels, weights), (other, more_labels, more_weights) in zip(whole, parts, strict=True):
        assert weights.tolist() == [1.0] * 10 and more_weights.tolist() == [1.0] * 10 + [0.0] * 2
        np.testing.assert_array_equal(labels, more_labels[:10])
        for name in one:
            np.testing.assert_allclose(one[name], other[name][:10], atol=1e-5)


def test_linear_draws_views_and_order_anew_in_every_epoch(model, monkeypatch):
    read = []

    def read_batches(views, indices, **_):
        read.append((views.epoch, tuple(index for index in indices if index >= 0)))
        return []

    monkeypatch.setattr(linear, "read_batches", read_batches)
    found = options("linear", "--data", "", "--epochs", 3, *SMALL)
    assert not list(linear._on_the_fly(model, range(24), found, blocks=1, batch_size=8))
    assert [epoch for epoch, _ in read] == [0, 1, 2]
    assert len({order for _, order in read}) == 3
    assert all(sorted(order) == list(range(24)) for _, order in read)


def test_linear_takes_extracted_views_in_turn_and_the_order_anew(model, monkeypatch):
    def features(model, view, *_, **__):
        tokens = np.full((24, 2), view.epoch, np.float32)
        return {"cls": tokens, "mean_patch": tokens, "labels": np.arange(24)}

    monkeypatch.setattr(linear, "features_of", features)
    found = options("linear", "--data", "", "--epochs", 3, "--views", 2, *SMALL)
    batches = list(linear._from_cache(model, range(24), found, blocks=1, batch_size=12))
    assert [float(tokens["cls_1"][0, 0]) for tokens, _, _ in batches] == [0, 0, 1, 1, 0, 0]
    orders = [labels.tolist() for _, labels, _ in batches]
    assert len({tuple(first + second) for first, second in zip(orders[::2], orders[1::2], strict=True)}) == 3


def test_linear_refuses_views_that_memory_cannot_hold(evaluate, colors, monkeypatch):
    views = ("--views", 3, "--epochs", 5)
    monkeypatch.setattr(host_memory, "of_process", lambda: 5000)
    with pytest.raises(ValueError, match="the features of 3 views of 18 images take"):
        evaluate("linear", "--data", colors, *views, "--validation", 0.25, *SMALL)


def test_linear_refuses_images_without_a_class(evaluate, colors, tmp_path):
    data = tmp_path / "strayed"
    shutil.copytree(colors, data)
    for number in range(4):
        shutil.copy(next((colors / "train").rglob("*.png")), data / "train" / f"stray{number}.png")
    for seed in range(3):  # whether they fall into the held-out part or not
        with pytest.raises(ValueError, match=r"stray\d.png"):
            evaluate("linear", "--data", data, "--epochs", 1, "--train-batch", 8, "--seed", seed, *SMALL)


def test_linear_on_a_convolutional_network(colors, tmp_path):
    model, _ = dino_jax.load("random:dino_resnet50", depths=(1, 1), channels=4)
    found = options("linear", "--data", colors, "--epochs", 1, "--train-batch", 8, "--size", 32, "--batch-size", 8)
    result = open_task("linear").run(model, found, tmp_path)
    assert {"linear/cls_1", "linear/cls_1+patch"} <= set(result.numbers)


def test_linear_refuses_wrong_settings(evaluate, colors):
    with pytest.raises(ValueError, match="must be above 0"):
        evaluate("linear", "--data", colors, "--epochs", 0, *SMALL)
    with pytest.raises(ValueError, match=r"--validation 1\.5 must lie between 0 and 1"):
        evaluate("linear", "--data", colors, "--validation", 1.5, *SMALL)
    with pytest.raises(ValueError, match="must be above 0"):
        evaluate("linear", "--data", colors, "--rates", "nan", *SMALL)
    with pytest.raises(ValueError, match=r"--strengths \[nan\] must be above 0"):
        evaluate("logistic", "--data", colors, "--strengths", "nan", *SMALL)
    with pytest.raises(ValueError, match="must be above 0"):
        evaluate("knn", "--data", colors, "--k", 1, "--temperatures", "nan", *SMALL)


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("logistic", ("--validation", 2), "--validation 2 must lie between 0 and 1"),
        ("knn", ("--k", 1, "--shots", 2, "--draws", 0), "--draws 0 must be 1 or more"),
    ],
)
def test_wrong_settings_are_refused_before_the_work(evaluate, colors, monkeypatch, task, words, message):
    monkeypatch.setattr(open_task(task), "features_of", lambda *_: pytest.fail("features were computed"))
    with pytest.raises(ValueError, match=message):
        evaluate(task, "--data", colors, *words, *SMALL)


@pytest.mark.parametrize("task", ["knn", "logistic"])
def test_a_class_without_a_usable_training_image(evaluate, colors, tmp_path, task):
    shutil.copytree(colors, tmp_path / "data")
    *_, last = sorted((tmp_path / "data" / "train").iterdir())
    for file in last.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"no training image of class {last.name} can be used"):
        evaluate(task, "--data", tmp_path / "data", *(("--k", 1) if task == "knn" else ()), *SMALL)


def test_linear_notes_a_class_without_a_usable_training_image(evaluate, colors, tmp_path, capsys):
    shutil.copytree(colors, tmp_path / "data")
    *_, last = sorted((tmp_path / "data" / "train").iterdir())
    for file in last.iterdir():
        file.write_bytes(b"no image")
    evaluate("linear", "--data", tmp_path / "data", "--epochs", 1, "--train-batch", 8, *SMALL)
    assert f"no training image of class {last.name} was used" in capsys.readouterr().err
