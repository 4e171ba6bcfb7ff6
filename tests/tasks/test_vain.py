"""An option that does nothing is refused, in one line."""

import pytest

from dino_jax.tasks import open_task
from tests.tasks import planted
from tests.tasks.planted import options


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("segmentation", ("--head", "closed", "--steps", 3), "--steps has no effect with --head closed, which is not"),
        ("segmentation", ("--ridge=0.1",), "--ridge has no effect without --head closed: leave it out"),
        ("correspondence", ("--other", "b.jpg", "--points", 3), "--points has no effect with --other, which draws two"),
        ("correspondence", ("--pairs", "warps", "--year", 2016), "--year has no effect with --pairs warps"),
        ("copy_detection", ("--limit", 3), "--limit has no effect without --distractors or --whitening"),
        (
            "retrieval",
            ("--fit", "native", "--size", 224),
            "--size has no effect with --fit native, which keeps",
        ),
        ("linear", ("--views", 3, "--epochs", 2), "--views 3 are more than --epochs 2, each of which takes one"),
    ],
)
def test_an_option_without_effect_is_refused_before_the_data_is_opened(model, tmp_path, task, words, message):
    with pytest.raises(ValueError, match=message):
        open_task(task).run(model, options(task, "--data", tmp_path / "absent", *words), tmp_path)


def test_relative_depth_has_no_farthest(model, tmp_path):
    data = planted.depths(tmp_path / "data")
    with pytest.raises(ValueError, match="--farthest has no effect on relative depth, which ends at 1"):
        open_task("depth").run(model, options("depth", "--data", data, "--farthest", 5), tmp_path)


def test_draws_of_nothing(model, colors, tmp_path):
    with pytest.raises(ValueError, match="--draws has no effect without --shots"):
        open_task("knn").run(model, options("knn", "--data", colors, "--draws", 2), tmp_path)
