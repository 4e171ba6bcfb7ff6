import numpy as np
import pytest

from tests.data.images import encode
from tests.tasks.conftest import COLORS, tinted

OPTIONS = ("--frames", 2, "--epochs", 30, "--train-batch", 8, "--rates", 1e-6, 3e-3, "--size", 16, "--batch-size", 8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Class "warmer" turns from blue to red, class "colder" from red to blue: only the order of frames differs."""
    folder = tmp_path_factory.mktemp("videos")
    ends = np.array([COLORS["blue"], COLORS["red"]], float)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("colder", "warmer"):
            for number in range(count):
                place = folder / split / name / f"{number}"
                place.mkdir(parents=True)
                for frame in range(4):
                    share = frame / 3 if name == "warmer" else 1 - frame / 3
                    color = ends[0] + share * (ends[1] - ends[0])
                    (place / f"{frame}.png").write_bytes(encode(tinted(color, 10 * number + frame)))
    return folder


def test_video_probe(evaluate, videos):
    result = evaluate("video_probe", "--data", videos, *OPTIONS)
    assert result.numbers["video_probe/accuracy"] == 1
    assert result.numbers["video_probe/rate"] == 3e-3
    assert [path.name for path in result.pictures] == ["videos.png", "confusion.png"]


def test_a_damaged_frame_is_one_line(evaluate, videos):
    frame = videos / "test" / "colder" / "0" / "0.png"
    content = frame.read_bytes()
    frame.write_bytes(content[:50])
    try:
        with pytest.raises(ValueError, match=r"0\.png cannot be read"):
            evaluate("video_probe", "--data", videos, *OPTIONS)
    finally:
        frame.write_bytes(content)
