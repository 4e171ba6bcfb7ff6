import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from dino_jax.data.dense import VOC_CLASSES, open_masks
from dino_jax.data.files import below, open_files


def photograph(size=(24, 16)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


def labels(value=0, *, size=(24, 16), mode="L"):
    image = Image.fromarray(np.full((size[1], size[0]), value, np.uint8))
    if mode == "P":
        image.putpalette([1, 2, 3] * 256)
    return image


def write(folder, files):
    """Writes images and texts by their relative name."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            content.save(path)
    return folder


def camvid(**changes):
    files = {
        "classes.txt": "0 sky\n1 traffic light\n255 void\n",
        **{f"{split}/images/{name}.jpg": photograph() for split in ("train", "test") for name in "ab"},
        **{f"{split}/masks/{name}.png": labels(name == "b", mode="P") for split in ("train", "test") for name in "ab"},
    }
    return {name: content for name, content in (files | changes).items() if content is not None}


def test_pairs_in_a_folder_and_in_archives(tmp_path):
    folder = write(tmp_path / "camvid", camvid())
    for kind in ("tar", "tar.gz"):
        with tarfile.open(tmp_path / f"camvid.{kind}", "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(folder, arcname="CamVid")
    for path in (folder, tmp_path / "camvid.tar", tmp_path / "camvid.tar.gz"):
        data = open_masks(path, "test")
        assert data.class_names == ("sky", "traffic light")
        assert data.name(1).endswith("test/images/b.jpg")
        image, mask = data[1]
        assert image.shape == (16, 24, 3) and mask.shape == (16, 24)
        assert (mask == 1).all() and mask.dtype == np.uint8


def test_classes_are_counted_where_they_are_not_listed(tmp_path):
    masks = {"classes.txt": None, "train/masks/b.png": labels(4)}
    assert open_masks(write(tmp_path, camvid(**masks)), "train").class_names == tuple(f"class {i}" for i in range(5))


@pytest.mark.parametrize(
    ("value", "words"), [(151, "holds value 151, .* \\(1 to 150; 0 is ignored"), (255, "holds value 255")]
)
def test_values_of_ade20k_that_are_no_class_are_said_as_the_file_has_them(value, words, tmp_path):
    write(tmp_path, {"images/training/x.jpg": photograph(), "annotations/training/x.png": labels(value)})
    with pytest.raises(ValueError, match=words):
        open_masks(tmp_path, "train")[0]


def test_a_mask_without_its_image(tmp_path):
    write(tmp_path, camvid(**{"test/images/a.jpg": None}))
    with pytest.raises(ValueError, match=r"test/masks/a.png has no image of the same name: add it or remove the mask"):
        open_masks(tmp_path, "test")


def test_camvid_of_segnet(tmp_path):
    files = {
        f"CamVid/{split}{kind}/{split}_1.png": photograph() if kind == "" else labels(value)
        for split, value in (("train", 10), ("val", 0), ("test", 11))
        for kind in ("", "annot")
    }
    write(tmp_path, files | {"CamVid/train.txt": "train_1.png"})
    found = {split: open_masks(tmp_path, split) for split in ("train", "val", "test")}
    assert {split: [data.name(i) for i in range(len(data))] for split, data in found.items()} == {
        split: [f"CamVid/{split}/{split}_1.png"] for split in found
    }
    assert {split: np.unique(data[0][1]).tolist() for split, data in found.items()} == {
        "train": [10],
        "val": [0],
        "test": [255],
    }
    assert found["train"].class_names[10] == "bicyclist" and len(found["train"].class_names) == 11


def test_ade20k_starts_at_one(tmp_path):
    files = {
        "ADE/images/training/x.jpg": photograph(),
        "ADE/annotations/training/x.png": Image.fromarray(np.repeat([[0, 1, 150]], 16, 0).repeat(8, 1).astype("uint8")),
        "ADE/images/validation/y.jpg": photograph(),
        "ADE/annotations/validation/y.png": labels(3),
    }
    data = open_masks(write(tmp_path, files), "train")
    assert len(data.class_names) == 150
    np.testing.assert_array_equal(np.unique(data[0][1]), [0, 149, 255])
    assert (open_masks(tmp_path, "val")[0][1] == 2).all()
    with pytest.raises(ValueError, match="ADE20K has no split 'vall': use train, val, test"):
        open_masks(tmp_path, "vall")


def test_two_years_of_voc_are_one_line(tmp_path):
    write(tmp_path, {f"VOC{year}/SegmentationClass/a.png": labels() for year in (2007, 2012)})
    with pytest.raises(ValueError, match="has VOC2007/SegmentationClass and VOC2012/SegmentationClass"):
        open_masks(tmp_path, "train")


def test_voc_reads_its_lists(tmp_path):
    root = "VOCdevkit/VOC2012"
    files = {
        f"{root}/ImageSets/Segmentation/train.txt": "a\n",
        f"{root}/ImageSets/Segmentation/val.txt": "b\n",
        f"{root}/JPEGImages/a.jpg": photograph(),
        f"{root}/JPEGImages/b.jpg": photograph(),
        f"{root}/JPEGImages/unlabelled.jpg": photograph(),
        f"{root}/SegmentationClass/a.png": labels(20, mode="P"),
        f"{root}/SegmentationClass/b.png": labels(255, mode="P"),
    }
    write(tmp_path, files)
    train, val = open_masks(tmp_path, "train"), open_masks(tmp_path, "val")
    assert len(train) == len(val) == 1
    assert train.class_names == VOC_CLASSES and (train[0][1] == 20).all() and (val[0][1] == 255).all()
    with pytest.raises(ValueError, match=r"has no .*/Segmentation/trainval.txt, which lists the images of the split"):
        open_masks(tmp_path, "trainval")


def test_voc_trains_on_its_augmented_list_where_both_are_there(tmp_path):
    root = "VOCdevkit/VOC2012"
    files = {f"{root}/JPEGImages/{name}.jpg": photograph() for name in "abc"}
    files |= {f"{root}/SegmentationClass/{name}.png": labels(1, mode="P") for name in "ab"}
    files |= {f"{root}/ImageSets/Segmentation/{name}.txt": ids for name, ids in (("train", "a\n"), ("val", "b\n"))}
    files |= {f"{root}/ImageSets/Segmentation/trainaug.txt": "a\nc\n"}
    assert len(open_masks(write(tmp_path, files), "train")) == 1
    write(tmp_path, {f"{root}/SegmentationClassAug/{name}.png": labels(2) for name in "abc"})
    train, val = open_masks(tmp_path, "train"), open_masks(tmp_path, "val")
    assert [train.name(n)[-5:] for n in range(len(train))] == ["a.jpg", "c.jpg"] and (train[0][1] == 2).all()
    assert len(val) == 1 and (val[0][1] == 1).all()


def test_the_shared_tars(shared_data):
    masks = open_masks(shared_data / "segmentation.tar.gz", "val")
    assert len(masks) == 101 and len(masks.class_names) == 11 and masks[0][0].shape == (192, 256, 3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"test/masks/a.png": None}, "test/images/a.jpg has no mask of the same name"),
        ({"test/masks/a.png": labels(size=(12, 16))}, "is 12 x 16 pixels, its image 24 x 16"),
        ({"test/masks/a.png": labels(7)}, r"a.png .* holds value 7, but there are 2 classes \(0 to 1"),
        ({"test/masks/a.png": photograph()}, "mode RGB: save it as a palette or grey PNG"),
        ({"test/masks/a.png": "no image"}, "test/masks/a.png .* cannot be read: it is no image"),
        ({"test/images/a.jpg": "no image"}, "test/images/a.jpg .* not an image of a known format"),
        ({"classes.txt": "0 sky\n"}, "has 1 class: segmentation needs two"),
        ({"classes.txt": "0 sky\n2 car\n"}, "without a gap"),
        ({"classes.txt": "sky\ncar\n"}, "every line must be <label> <name>"),
    ],
)
def test_bad_data_is_one_line(tmp_path, change, message):
    write(tmp_path, camvid(**change))
    with pytest.raises(ValueError, match=message) as error:
        open_masks(tmp_path, "test")[0]
    assert "\n" not in str(error.value)


def test_more_classes_than_a_byte_holds(tmp_path):
    mask = Image.fromarray(np.full((16, 24), 300, np.uint16))
    write(tmp_path, camvid(**{"classes.txt": None, "train/masks/a.png": mask}))
    with pytest.raises(ValueError, match="has 301 classes: labels must be 0 to 254"):
        open_masks(tmp_path, "test")


def test_unknown_layouts_are_one_line(tmp_path):
    write(tmp_path / "flat", {"a.jpg": photograph()})
    with pytest.raises(ValueError, match="is not laid out as segmentation data"):
        open_masks(tmp_path / "flat", "train")
    with pytest.raises(ValueError, match="does not exist"):
        open_masks(tmp_path / "nowhere", "train")
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match="not a readable tar"):
        open_masks(tmp_path / "broken.tar", "train")


def test_hidden_files_of_archives_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("./set/train/images/a.jpg", "./set/train/images/._a.jpg"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    files = open_files(tmp_path / "a.tar")
    assert files.names == ("set/train/images/a.jpg",)
    assert below(files, "train/images") == "set/" and below(files, "masks") is None
