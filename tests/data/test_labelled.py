import tarfile

import numpy as np
import pytest

from dino_jax.data.labelled import open_labelled
from dino_jax.data.probe_views import Augmented
from dino_jax.data.subset import Chosen
from tests.data.images import encode, photograph


def write(folder, classes, count=3, seed=0):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = photograph(20, 24, seed + 10 * label + number)
            (folder / name / f"{number}.png").write_bytes(encode(image))
    return folder


def test_test_labels_count_the_training_classes(tmp_path):
    """The test images lack class a; b and c keep the numbers they have in training."""
    write(tmp_path / "train", ["a", "b", "c"])
    write(tmp_path / "val", ["b", "c"], count=2)
    data = open_labelled(str(tmp_path))
    assert data.class_names == ("a", "b", "c")
    assert [data.train[i]["label"] for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [data.test[i]["label"] for i in range(4)] == [1, 1, 2, 2]
    assert data.test.name(2) == "c/0.png"
    apart = open_labelled(str(tmp_path / "train"), str(tmp_path / "val"), limit=4)
    assert (len(apart.train), len(apart.test)) == (4, 4)


def test_wrong_folders_are_one_line(tmp_path):
    train = write(tmp_path / "train", ["a", "b"])
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_labelled(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no folders train and val"):
        open_labelled(str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        open_labelled(str(train), str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds one class \(a\)"):
        open_labelled(str(write(tmp_path / "one", ["a"])), str(train))
    with pytest.raises(ValueError, match="no class folders"):
        open_labelled(str(train / "a"), str(train))
    with pytest.raises(ValueError, match="holds class c"):
        open_labelled(str(train), str(write(tmp_path / "other", ["a", "c"])))
    with pytest.raises(ValueError, match="holds images without a class"):
        open_labelled(str(train), str(train / "a"))
    with pytest.raises(ValueError, match="limit of 1"):
        open_labelled(str(train), str(train), limit=1)
    (train / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class empty in .* has no image"):
        open_labelled(str(train), str(train))


@pytest.mark.parametrize("inside", ["", "imagenette/"])
def test_an_archive_of_both_is_parted(tmp_path, inside):
    write(tmp_path / "train", ("a", "b", "c"))
    write(tmp_path / "val", ("b", "c"), seed=50)
    (tmp_path / "train" / "b" / "images").mkdir()  # as Tiny ImageNet has it
    (tmp_path / "train" / "b" / "0.png").rename(tmp_path / "train" / "b" / "images" / "0.png")
    with tarfile.open(tmp_path / "both.tar", "w") as file:
        for split in ("train", "val"):
            file.add(tmp_path / split, f"{inside}{split}")
    found, folder = open_labelled(str(tmp_path / "both.tar")), open_labelled(str(tmp_path))
    assert found.class_names == folder.class_names == ("a", "b", "c")
    for ours, theirs in ((found.train, folder.train), (found.test, folder.test)):
        assert len(ours) == len(theirs)
        for index in range(len(ours)):
            assert ours[index]["label"] == theirs[index]["label"]
            np.testing.assert_array_equal(ours[index]["image"], theirs[index]["image"])
    with tarfile.open(tmp_path / "one.tar", "w") as file:
        file.add(tmp_path / "train", "train")
    with pytest.raises(ValueError, match=r"one\.tar holds no folders train and val \(or test\)"):
        open_labelled(str(tmp_path / "one.tar"))


def test_chosen_images_are_renumbered(tmp_path):
    data = open_labelled(str(write(tmp_path / "train", ["a", "b"])), str(tmp_path / "train"))
    chosen = Chosen(data.train, np.array([5, 0]))
    assert [chosen[i]["label"] for i in range(2)] == [1, 0]
    assert chosen.name(0) == "b/2.png"


def test_views_depend_on_seed_epoch_and_image_alone(tmp_path):
    data = open_labelled(str(write(tmp_path / "train", ["a", "b"])), str(tmp_path / "train"))
    views = Augmented(data.train, size=16, seed=0, epoch=0)
    assert views[1]["image"].shape == (16, 16, 3)
    np.testing.assert_array_equal(views[1]["image"], Augmented(data.train, size=16, seed=0, epoch=0)[1]["image"])
    assert not np.array_equal(views[1]["image"], Augmented(data.train, size=16, seed=0, epoch=1)[1]["image"])
    assert views[4]["label"] == 1
    assert len(views) == 6
    assert views.class_names == ("a", "b")
    assert views.name(0) != Augmented(data.train, size=16, seed=0, epoch=1).name(0)
