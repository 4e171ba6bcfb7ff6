import pytest

from dino_jax.data.clips import open_clips
from tests.data.images import encode, photograph


def write(folder, videos, frames=12):
    for number, video in enumerate(videos):
        (folder / video).mkdir(parents=True)
        for frame in range(frames):
            (folder / video / f"{frame}.png").write_bytes(encode(photograph(16, 20, 100 * number + frame)))
    return folder


def test_videos_of_both_splits(tmp_path):
    write(tmp_path / "train", ["run/a", "run/b", "walk/a"])
    write(tmp_path / "val", ["walk/c"])
    train, test = open_clips(str(tmp_path))
    assert train.names == ("run/a", "run/b", "walk/a")
    assert train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [1]
    # 10.png comes after 9.png.
    assert [name.rpartition("/")[2] for name in test.frames[0]][-3:] == ["9.png", "10.png", "11.png"]
    apart, _ = open_clips(str(tmp_path / "train"), str(tmp_path / "val"))
    assert apart.names == train.names


def test_masks_beside_the_frames_are_no_videos(tmp_path):
    """As in DAVIS, if each sequence is taken for a class."""
    write(tmp_path, ["bear/frames", "bear/masks", "camel/frames", "camel/masks"], frames=2)
    train, _ = open_clips(*2 * [str(tmp_path)])
    assert train.names == ("bear/frames", "camel/frames")


def test_one_of_several_test_folders(tmp_path):
    for folder, videos in (("train", ["run/a", "walk/a"]), ("val", ["run/b"]), ("test", ["run/b", "walk/c"])):
        write(tmp_path / folder, videos, frames=3)
    _, test = open_clips(str(tmp_path))
    assert test.names == ("run/b",)
    assert len(test.frames[0]) == 3
    write(tmp_path / "train" / "more", ["run/a"])
    with pytest.raises(ValueError, match="has two videos named run/a, train/more/run/a and train/run/a: rename one"):
        open_clips(str(tmp_path))


def test_frames_are_spread_evenly_and_short_videos_repeat_them(tmp_path):
    write(tmp_path / "train", ["run/a", "walk/a"])
    train, _ = open_clips(str(tmp_path / "train"), str(tmp_path / "train"))
    sampled = train.sampled(4)
    assert len(sampled) == 8
    assert [sampled.name(i) for i in range(4)] == [f"run/a/{n}.png" for n in (0, 3, 6, 9)]
    assert len({train.sampled(24).name(i) for i in range(24)}) == 12


def test_wrong_videos_are_one_line(tmp_path):
    one = write(tmp_path / "one", ["run/a", "run/b"])
    two = write(tmp_path / "two", ["run/a", "walk/a"])
    with pytest.raises(ValueError, match=r"holds one class \(run\)"):
        open_clips(str(one), str(one))
    with pytest.raises(ValueError, match="has no training videos"):
        open_clips(str(one))
    with pytest.raises(ValueError, match="class jump have no training videos"):
        open_clips(str(two), str(write(tmp_path / "three", ["jump/a"])))
    with pytest.raises(ValueError, match="does not exist"):
        open_clips(str(tmp_path / "nowhere"))


def test_some_of_the_videos(tmp_path):
    train, _ = open_clips(*2 * [str(write(tmp_path, ["run/a", "run/b", "walk/a"], frames=2))])
    part = train.part([2, 0])
    assert part.names == ("walk/a", "run/a") and part.labels.tolist() == [1, 0]
    assert [part.sampled(1).name(i) for i in range(2)] == ["walk/a/0.png", "run/a/0.png"]
    assert len(train.part([])) == len(train.part([]).labels) == 0
