import numpy as np
import pytest
from PIL import Image

from dino_jax.data.objects import open_objects
from tests.data.test_dense import labels, photograph, write
from tests.data.test_video import clip, davis


def xml(*boxes):
    objects = "".join(
        f"<object><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return f"<annotation>{objects}</annotation>"


def rectangle(value=255):
    mask = np.zeros((16, 24), np.uint8)
    mask[2:6, 3:10] = value
    return Image.fromarray(mask)


def test_two_years_of_voc_are_one_line(tmp_path):
    for year in (2007, 2012):
        root = f"VOC{year}"
        write(tmp_path, {f"{root}/JPEGImages/a.jpg": photograph(), f"{root}/Annotations/a.xml": xml((1, 1, 2, 2))})
    with pytest.raises(ValueError, match="has VOC2007/Annotations and VOC2012/Annotations: give the folder of one"):
        open_objects(tmp_path)


def test_voc_boxes_count_from_one(tmp_path):
    files = {
        "VOC2007/JPEGImages/a.jpg": photograph(),
        "VOC2007/JPEGImages/b.jpg": photograph(),
        "VOC2007/Annotations/a.xml": xml((1, 1, 24, 16), (4, 3, 10, 6)),
        "VOC2007/Annotations/b.xml": xml((1, 1, 2, 2)),
        "VOC2007/ImageSets/Main/trainval.txt": "a\n",
    }
    data = open_objects(write(tmp_path, files))
    assert len(data) == 1 and data[0].mask is None
    assert data[0].boxes == [(0, 0, 24, 16), (3, 2, 10, 6)]


@pytest.mark.parametrize("box", [(10, 3, 4, 6), (1, 1, 400, 300), (0, 1, 4, 4)])
def test_a_box_that_is_none(tmp_path, box):
    files = {"JPEGImages/a.jpg": photograph(), "Annotations/a.xml": xml((1, 1, 2, 2), box)}
    with pytest.raises(ValueError, match=r"a.xml in .* has a box from .* in an image of 24 x 16: correct it"):
        open_objects(write(tmp_path, files))[0]


def test_voc_boxes_of_parts_are_left_out(tmp_path):
    head = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>4</ymin><xmax>6</xmax><ymax>5</ymax></bndbox></part>"
    note = xml((4, 3, 10, 6)).replace("</object>", f"{head}</object>")
    data = open_objects(write(tmp_path, {"JPEGImages/a.jpg": photograph(), "Annotations/a.xml": note}))
    assert data[0].boxes == [(3, 2, 10, 6)]


def test_masks_of_images(tmp_path):
    example = open_objects(write(tmp_path, {"images/a.jpg": photograph(), "masks/a.png": rectangle()}))[0]
    assert example.boxes == [(3, 2, 10, 6)] and example.mask.sum() == 28


def test_void_is_no_object(tmp_path):
    """255 is the object where there is no other value, void beside others."""
    mask = np.zeros((16, 24), np.uint8)
    mask[2:6, 3:10], mask[10:12] = 7, 255
    example = open_objects(write(tmp_path, {"images/a.jpg": photograph(), "masks/a.png": Image.fromarray(mask)}))[0]
    assert example.boxes == [(3, 2, 10, 6)] and example.mask.sum() == 28


def test_soft_edges_of_a_grey_mask(tmp_path):
    mask = np.array(rectangle())
    mask[6, 3:10], mask[7, 3:10] = 128, 90
    example = open_objects(write(tmp_path, {"images/a.jpg": photograph(), "masks/a.png": Image.fromarray(mask)}))[0]
    assert example.boxes == [(3, 2, 10, 7)] and example.mask.sum() == 35


def test_frames_of_videos_without_an_object_are_left_out(tmp_path):
    data = open_objects(write(tmp_path, clip(**{"dog/masks/00001.png": labels(0)})))
    assert len(data) == 2
    assert data[1].name == "dog/frames/00002.jpg" and data[1].boxes == [(0, 0, 24, 16)]


def test_davis_2016_has_one_object(tmp_path):
    mask = np.zeros((16, 24), np.uint8)
    mask[:4, :6], mask[4:8, 6:9] = 1, 2
    write(tmp_path, davis(Image.fromarray(mask)) | {f"ImageSets/{year}/val.txt": "dog\n" for year in (2016, 2017)})
    assert open_objects(tmp_path)[0].boxes == [(0, 0, 6, 4), (6, 4, 9, 8)]
    assert open_objects(tmp_path, year=2016)[0].boxes == [(0, 0, 9, 8)]


@pytest.mark.parametrize(
    "files, message",
    [
        ({"images/a.jpg": photograph(), "masks/a.png": labels(0)}, "is empty: leave out images without an object"),
        ({"images/a.jpg": photograph(), "masks/a.png": labels(1, size=(12, 16))}, "12 x 16 pixels, its image 24 x 16"),
        ({"images/a.jpg": photograph()}, "has no mask of the same name"),
        ({"a.jpg": photograph()}, "holds no objects in a known layout"),
        ({"JPEGImages/a.jpg": photograph(), "Annotations/a.xml": xml()}, "a.xml .* has no box"),
        ({"JPEGImages/a.jpg": photograph(), "Annotations/a.xml": "<oh"}, "is not an annotation of VOC"),
        ({"JPEGImages/a.jpg": photograph(), "Annotations/b.xml": xml()}, "has no annotation of the same name"),
    ],
)
def test_bad_objects_are_one_line(tmp_path, files, message):
    with pytest.raises(ValueError, match=message) as error:
        open_objects(write(tmp_path, files))[0]
    assert "\n" not in str(error.value)


def test_masks_of_videos_are_read_when_they_are_needed(tmp_path):
    data = open_objects(write(tmp_path, clip("a") | clip("b") | clip("c")))  # those of two videos are kept
    write(tmp_path, {"a/masks/00001.png": rectangle(3)})
    assert data[1].name == "a/frames/00001.jpg" and data[1].boxes == [(3, 2, 10, 6)]
