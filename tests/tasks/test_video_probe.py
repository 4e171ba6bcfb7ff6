import numpy as np
import pytest

from dino_jax import host_memory
from dino_jax.data.clips import open_clips
from dino_jax.evals import attentive
from dino_jax.extraction import extract_features
from dino_jax.tasks import video_probe
from tests.data.images import encode
from tests.tasks.conftest import COLORS, tinted
from tests.tasks.planted import options

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


def test_probes_that_all_diverge_are_no_score(evaluate, videos, monkeypatch):
    predict = attentive.predict
    monkeypatch.setattr(attentive, "predict", lambda *arguments, **options: predict(*arguments, **options) * 0 - 1)
    with pytest.raises(ValueError, match=r"every probe diverged at --rates \[0.001\]: lower them"):
        evaluate("video_probe", "--data", videos, "--size", 16, "--frames", 2, "--epochs", 1, "--rates", 0.001)


def test_a_damaged_frame_is_one_line(evaluate, videos):
    frame = videos / "test" / "colder" / "0" / "0.png"
    content = frame.read_bytes()
    frame.write_bytes(content[:50])
    try:
        with pytest.raises(ValueError, match=r"0\.png cannot be read"):
            evaluate("video_probe", "--data", videos, *OPTIONS)
    finally:
        frame.write_bytes(content)


@pytest.mark.parametrize(
    "words, message",
    [
        (("--rates", "nan"), "--rates must be above 0"),
        (("--limit", 0), "--limit 0 leaves no training videos of two classes: raise it"),
        (("--limit", 3), "class warmer has a single training sample"),
        ((), r"the features of 24 videos take .*: use --limit, fewer --frames or a smaller --size"),
        (("--limit", 6), "the features of 12 videos take"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(evaluate, videos, monkeypatch, words, message):
    monkeypatch.setattr(host_memory, "of_process", lambda: 1000)
    monkeypatch.setattr(video_probe, "extracted", lambda *_, **__: pytest.fail("features were computed"))
    with pytest.raises(ValueError, match=message):
        evaluate("video_probe", "--data", videos, *OPTIONS, *words)


def test_features_of_a_few_videos_at_a_time_are_those_of_all(model, videos, monkeypatch):
    train, _ = open_clips(str(videos))
    settings = options("video_probe", "--data", videos, *OPTIONS)
    shape = video_probe.patch_shape(model, [train], settings)
    monkeypatch.setattr(video_probe, "BLOCK", 6)
    found = video_probe.patches_of(model, train, shape, settings)
    whole = extract_features(model, train.sampled(2), size=16, outputs=("patches",), batch_size=8)["patches"]
    assert found.shape == (16, 2, 2, 2, model.width) and found.dtype == np.float16
    np.testing.assert_allclose(found.reshape(whole.shape), whole, atol=5e-3)


def test_heads_divide_every_width():
    assert [video_probe._heads(width) for width in (16, 100, 208, 384, 1024)] == [1, 1, 2, 6, 16]
