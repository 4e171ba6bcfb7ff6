import numpy as np
import pytest
import scipy.io
from PIL import Image

from dino_jax.data.depths import NYU_FILE, NYU_SPLITS, open_depths
from tests.data.test_dense import labels, photograph, write

METRES = np.uint16(2500)


def test_depth_in_millimetres_and_relative(tmp_path):
    for name, depth in (("mm", np.full((8, 12), 2500, np.uint16)), ("relative", np.full((8, 12), 51, np.uint8))):
        folder = write(
            tmp_path / name, {"train/images/a.jpg": photograph(), "train/depth/a.png": Image.fromarray(depth)}
        )
        data = open_depths(folder, "train")
        image, metres = data[0]
        assert image.shape == (16, 24, 3) and metres.shape == (8, 12)
        assert data.relative == (name == "relative")
        np.testing.assert_allclose(metres, 2.5 if name == "mm" else 0.2)


def test_maps_of_8_and_16_bits_are_not_mixed(tmp_path):
    maps = {"a": np.full((8, 12), 2500, np.uint16), "b": np.full((8, 12), 51, np.uint8)}
    files = {f"train/depth/{name}.png": Image.fromarray(depth) for name, depth in maps.items()}
    write(tmp_path, files | {f"train/images/{name}.jpg": photograph() for name in maps})
    data = open_depths(tmp_path, "train")
    data[0]
    with pytest.raises(ValueError, match=r"b\.png .*: one has 8 bits and the other 16"):
        data[1]


def test_the_shared_tar(shared_data):
    depths = open_depths(shared_data / "depth.tar.gz", "test")
    assert len(depths) == 96 and depths.relative and depths[0][1].max() <= 1


def synchronised(**changes):
    files = {
        f"nyu/{folder}/kitchen_1/{name}": content
        for folder in ("sync", "official_splits/test")
        for name, content in {
            "rgb_00045.jpg": photograph(),
            "sync_depth_00045.png": Image.fromarray(np.full((16, 24), METRES)),
        }.items()
    }
    return {name: content for name, content in (files | changes).items() if content is not None}


def test_nyu_synchronised(tmp_path):
    write(tmp_path, synchronised())
    for split in ("train", "test"):
        data = open_depths(tmp_path, split)
        assert len(data) == 1 and not data.relative and data.name(0).endswith("kitchen_1/rgb_00045.jpg")
        image, metres = data[0]
        assert image.shape == (16, 24, 3) and metres.shape == (16, 24)
        np.testing.assert_allclose(metres, 2.5)


def test_nyu_trains_on_all_frames_beside_those_of_the_labelled_file(tmp_path):
    few = {
        f"nyu/official_splits/train/den/{name}": content
        for name, content in {
            "rgb_00001.jpg": photograph(),
            "sync_depth_00001.png": Image.fromarray(np.full((16, 24), METRES)),
        }.items()
    }
    data = open_depths(write(tmp_path, synchronised(**few)), "train")
    assert len(data) == 1 and data.name(0) == "nyu/sync/kitchen_1/rgb_00045.jpg"


def labelled(folder, *, frames=3, changes=None):
    """Writes the labelled file and its splits, two frames to train and the last to test."""
    h5py = pytest.importorskip("h5py")
    random = np.random.default_rng(0)
    arrays = {
        "images": random.integers(0, 256, (frames, 3, 24, 16), np.uint8),
        "rawDepths": random.uniform(0, 9, (frames, 24, 16)).astype(np.float32),
    } | (changes or {})
    with h5py.File(folder / NYU_FILE, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
    split = {"trainNdxs": np.array([[1], [2]], np.uint16), "testNdxs": np.array([[3]], np.uint16)}
    scipy.io.savemat(folder / NYU_SPLITS, split)
    return arrays


def test_nyu_labelled(tmp_path):
    arrays = labelled(tmp_path)
    for path in (tmp_path, tmp_path / NYU_FILE):
        train, test = open_depths(path, "train"), open_depths(path, "test")
        assert (len(train), len(test), test.relative, test.name(0)) == (2, 1, False, "frame 3")
        image, metres = test[0]
        # MATLAB's arrays come with their axes reversed.
        np.testing.assert_array_equal(image[5, 7], arrays["images"][2, :, 7, 5])
        np.testing.assert_array_equal(metres[5, 7], arrays["rawDepths"][2, 7, 5])
        assert image.shape == (16, 24, 3) and metres.shape == (16, 24)


def test_bad_nyu_is_one_line(tmp_path):
    labelled(tmp_path, frames=2)
    with pytest.raises(ValueError, match=r"has 2 images and 2 depth maps, .* names frames 3 to 3"):
        open_depths(tmp_path, "test")
    with pytest.raises(ValueError, match=r"has the splits train and test, not 'val'"):
        open_depths(tmp_path, "val")
    labelled(tmp_path, changes={"rawDepths": None})
    with pytest.raises(ValueError, match=r"not NYUv2's labelled file, or is damaged .*rawDepths"):
        open_depths(tmp_path, "test")
    (tmp_path / NYU_SPLITS).unlink()
    with pytest.raises(ValueError, match=r"splits.mat, the official split of .*, is missing"):
        open_depths(tmp_path, "test")


def test_a_missing_depth_map_is_one_line(tmp_path):
    write(tmp_path, synchronised(**{"nyu/sync/kitchen_1/sync_depth_00045.png": None}))
    with pytest.raises(ValueError, match=r"rgb_00045.jpg has no depth map of the same name"):
        open_depths(tmp_path, "train")


def test_unknown_layouts_are_one_line(tmp_path):
    write(tmp_path, {"a.jpg": photograph()})
    with pytest.raises(ValueError, match="is not laid out as depth data"):
        open_depths(tmp_path, "train")


def test_depth_must_show_what_the_image_shows(tmp_path):
    write(tmp_path, {"train/images/a.jpg": photograph(), "train/depth/a.png": labels(9, size=(16, 16))})
    with pytest.raises(ValueError, match="same field of view"):
        open_depths(tmp_path, "train")[0]
