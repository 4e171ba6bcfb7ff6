"""What is wrong with the images of an evaluation is said before the first step, and later does not stop a run."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from dino_jax import build, initial, sharding
from dino_jax import record as records
from dino_jax.data.sources import open_path
from dino_jax.data.subset import part_of
from dino_jax.progress import Progress
from dino_jax.scores import Scores
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


def test_held_out_images_of_which_none_can_be_used(networks, mesh, images):
    files = sorted((images / "test").rglob("*.png"))
    for file in files[1:]:
        file.write_bytes(b"no image")
    assert open_scores(get_config(), networks, mesh, images).labelled  # one of them can
    files[0].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"data.test_path: none of 9 images that were tried can be used, such as"):
        open_scores(get_config(), networks, mesh, images)


def test_a_damaged_dense_image(networks, mesh, images, tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "dense" / split / kind).mkdir(parents=True)
        (tmp_path / "dense" / split / "images" / "a.png").write_bytes(encode(photograph(48, 64)))
        Image.fromarray(np.eye(48, 64, dtype=np.uint8)).save(tmp_path / "dense" / split / "masks" / "a.png")
    config = get_config()
    config.eval.dense.path = str(tmp_path / "dense")
    assert open_scores(config, networks, mesh, images)
    (tmp_path / "dense" / "val" / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"eval.dense.path: val/images/a.png in .*: not an image of a known format"):
        open_scores(config, networks, mesh, images)


def test_of_a_single_image_there_is_no_quality(networks, mesh, images):
    scores = open_scores(get_config(), networks, mesh, images, held_out=False)
    params = initial.drawn(networks, mesh, seed=0)
    scores.unlabelled = part_of(scores.unlabelled, 2)
    assert scores.quality(params).keys() >= {"quality/rankme", "quality/uniformity"}
    scores.unlabelled = part_of(scores.unlabelled, 1)
    assert scores.quality(params) == {}


def test_an_evaluation_that_fails_is_noted(tmp_path, capsys):
    class Failing:
        def at(self, step, params):
            raise ValueError("the images are gone")

    recorder = records.Recorder.__new__(records.Recorder)
    recorder._scores, recorder._progress = Failing(), Progress(10)
    state = SimpleNamespace(teacher={"backbone": {}}, stats=lambda network: None)
    assert recorder._evaluate(5, state) == {}
    assert "step 5: not evaluated: the images are gone" in "".join(capsys.readouterr())
