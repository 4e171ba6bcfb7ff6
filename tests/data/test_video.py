import numpy as np
import pytest
from PIL import Image

from dino_jax.data.video import open_videos
from tests.data.test_dense import labels, photograph, write


def clip(name="dog", frames=3, **changes):
    files = {f"{name}/frames/{n:05d}.jpg": photograph() for n in range(frames)}
    files |= {f"{name}/masks/{n:05d}.png": labels(n + 1, mode="P") for n in range(frames)}
    return {name: content for name, content in (files | changes).items() if content is not None}


def davis(mask):
    names = [f"480p/{sequence}/{n:05d}" for sequence in ("dog", "cow") for n in range(3)]
    files = {f"JPEGImages/{name}.jpg": photograph() for name in names}
    return files | {f"Annotations/{name}.png": mask for name in names}


def test_frames_and_masks_in_order(tmp_path):
    videos = open_videos(write(tmp_path, clip() | clip("cow", 4)))
    assert [video.name for video in videos.videos] == ["cow", "dog"]
    assert videos.frames(0).shape == (4, 16, 24, 3)
    np.testing.assert_array_equal(videos.masks(1)[:, 0, 0], [1, 2, 3])


def test_frames_follow_their_numbers(tmp_path):
    files = {f"dog/frames/{n}.jpg": photograph() for n in (1, 2, 10)}
    files |= {f"dog/masks/{n}.png": labels(n, mode="P") for n in (1, 2, 10)}
    np.testing.assert_array_equal(open_videos(write(tmp_path, files)).masks(0)[:, 0, 0], [1, 2, 10])


def test_two_videos_of_one_name(tmp_path):
    files = {f"{folder}/{name}": content for folder in ("a", "b") for name, content in clip().items()}
    with pytest.raises(ValueError, match="has two videos named dog, a/dog and b/dog: rename one"):
        open_videos(write(tmp_path, files))


def test_davis_2016_marks_the_object_by_255(tmp_path):
    mask = np.zeros((16, 24), np.uint8)
    mask[:4] = 255
    write(tmp_path / "DAVIS", davis(Image.fromarray(mask)))
    lines = "".join(f"/JPEGImages/480p/cow/{n:05d}.jpg /Annotations/480p/cow/{n:05d}.png\n" for n in range(3))
    write(tmp_path / "DAVIS", {"ImageSets/480p/val.txt": lines})
    videos = open_videos(tmp_path, year=2016)
    assert [video.name for video in videos.videos] == ["cow"]
    np.testing.assert_array_equal(videos.masks(0)[0], mask // 255)


def test_davis_2017_marks_void_by_255(tmp_path):
    mask = np.zeros((16, 24), np.uint8)
    mask[:4], mask[4:8], mask[8] = 1, 2, 255
    write(tmp_path, davis(Image.fromarray(mask)) | {"ImageSets/2017/val.txt": "dog\n"})
    videos = open_videos(tmp_path)
    assert [video.name for video in videos.videos] == ["dog"]
    np.testing.assert_array_equal(videos.masks(0)[2], mask)


def test_void_beside_nothing_is_still_void(tmp_path):
    """In a video whose other masks have objects."""
    mask = np.zeros((16, 24), np.uint8)
    mask[:4] = 255
    videos = open_videos(write(tmp_path, clip(**{"dog/masks/00001.png": Image.fromarray(mask)})))
    assert set(np.unique(videos.masks(0)[1])) == {0, 255}


def test_davis_2017_read_as_2016_has_its_list_and_one_object(tmp_path):
    mask = np.zeros((16, 24), np.uint8)
    mask[:4], mask[4:8], mask[8] = 1, 2, 255
    lists = {"ImageSets/2016/val.txt": "cow\n", "ImageSets/2017/val.txt": "dog\n"}
    videos = open_videos(write(tmp_path, davis(Image.fromarray(mask)) | lists), year=2016)
    assert [video.name for video in videos.videos] == ["cow"]
    found = videos.masks(0)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[1], np.where(mask == 2, 1, mask))


@pytest.mark.parametrize("year", [2016, 2017])
@pytest.mark.parametrize("edge", [100, 200])
def test_soft_edges_are_no_object(tmp_path, edge, year):
    """A grey mask's bright half is the object, and nothing of it is void."""
    mask = np.zeros((16, 24), np.uint8)
    mask[:4], mask[4], mask[5] = 255, edge, 3
    masks = {f"dog/masks/{n:05d}.png": Image.fromarray(mask) for n in range(3)}
    np.testing.assert_array_equal(open_videos(write(tmp_path, clip(**masks)), year=year).masks(0)[0], mask > 127)


@pytest.mark.parametrize(
    "listed, year, message",
    [
        (
            "480p",
            2017,
            r"lacks ImageSets/2017/val.txt, .*; there are ImageSets/480p/val.txt: choose --year 2016 or add",
        ),
        (
            "2017",
            2016,
            r"lacks ImageSets/2016/val.txt, .*; there are ImageSets/2017/val.txt: choose --year 2017 or add",
        ),
        ("2019", 2017, r"there are ImageSets/2019/val.txt: add the list"),
        ("2019", 2019, r"DAVIS has no year 2019: choose among 2016, 2017"),
    ],
)
def test_davis_without_the_list_of_the_year(tmp_path, listed, year, message):
    write(tmp_path, davis(labels(1)) | {f"ImageSets/{listed}/val.txt": "dog\n"})
    with pytest.raises(ValueError, match=message):
        open_videos(tmp_path, year=year)


@pytest.mark.parametrize("year", [2016, 2017])
def test_davis_without_any_list_is_all_sequences(tmp_path, year):
    assert [video.name for video in open_videos(write(tmp_path, davis(labels(1))), year=year).videos] == ["cow", "dog"]


def test_the_shared_tar(shared_data):
    videos = open_videos(shared_data / "video.tar.gz")
    assert len(videos) == 12 and videos.frames(3).shape == (23, 192, 336, 3)
    assert set(np.unique(videos.masks(3))) == {0, 1}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dog/masks/00001.png": None}, "3 frames and 2 masks; dog/masks/00001.png is missing"),
        ({"dog/frames/00001.jpg": None}, "lacks the frame of mask dog/masks/00001.png"),
        ({"dog/masks/00000.png": labels(0)}, "has no object: the first mask says what to follow"),
        ({f"dog/masks/{n:05d}.png": labels(1, size=(12, 8)) for n in range(3)}, "12 x 8 pixels, its image 24 x 16"),
        ({"dog/masks/00002.png": labels(1, size=(12, 8))}, "this mask differs in size from dog/masks/00000.png"),
        (
            {"dog/masks/00001.png": Image.fromarray(np.full((16, 24), 257, np.uint16))},
            "00001.png .* holds value 257: objects are 1, 2, ... to 254",
        ),
    ],
)
def test_bad_videos_are_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        open_videos(write(tmp_path, clip(**change))).masks(0)
    assert "\n" not in str(error.value)


def test_too_few_frames_and_no_videos(tmp_path):
    with pytest.raises(ValueError, match="has 2 frames; tracking needs at least three"):
        open_videos(write(tmp_path / "short", clip(frames=2)))
    with pytest.raises(ValueError, match="holds no videos"):
        open_videos(write(tmp_path / "none", {"a.jpg": photograph()}))


def test_missing_sequence_of_the_list(tmp_path):
    write(tmp_path, davis(labels(1)) | {"ImageSets/2017/val.txt": "dog\nsheep\n"})
    with pytest.raises(ValueError, match=r"lacks the frames of sheep, which ImageSets/2017/val.txt names"):
        open_videos(tmp_path)
