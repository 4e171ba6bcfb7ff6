"""A tiny model and tiny data sets for tests of the evaluation tasks."""

import argparse

import numpy as np
import pytest

from dino_jax.tasks import open_task, parse
from tests.data.images import encode, photograph
from tests.tiny_model import tiny_model

COLORS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 30, 20)}


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture
def evaluate(model, tmp_path):
    """Runs a task with the options of a command line, in a folder of its own."""

    def run(task, *arguments):
        module = open_task(task)
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        result = module.run(model, parse(parser, [str(argument) for argument in arguments]), tmp_path / "out")
        for picture in result.pictures:
            assert picture.stat().st_size > 1000, picture
        assert all(isinstance(value, float) for value in result.numbers.values())
        assert all(name.startswith(f"{task}/") for name in result.numbers)
        return result

    return run


def tinted(color, seed):
    """Returns a photograph in which one colour prevails: what even a drawn network tells apart."""
    return (0.85 * np.array(color) + 0.15 * photograph(20, 24, seed)).astype(np.uint8)


@pytest.fixture(scope="session")
def colors(tmp_path_factory):
    """Returns a folder with train and val of three classes, each a colour."""
    folder = tmp_path_factory.mktemp("colors")
    for split, count in (("train", 8), ("val", 4)):
        for label, (name, color) in enumerate(COLORS.items()):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                seed = 1000 * (split == "val") + 100 * label + number
                (folder / split / name / f"{number}.png").write_bytes(encode(tinted(color, seed)))
    return folder
