"""The four kinds of sources, and what is said when they cannot be opened."""

import builtins
import errno
import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from dino_jax.data import arrayrecord, images, tar
from dino_jax.data import decode as decoding
from dino_jax.data.decode import BadImage
from dino_jax.data.files import is_label, open_files
from dino_jax.data.folder import FolderFiles
from dino_jax.data.labelled import open_labelled
from dino_jax.data.packaged import PHOTOGRAPHS, PackagedSource, read_photograph
from dino_jax.data.sources import has_labels, open_path, open_source
from tests.data.images import encode, photograph
from tests.data.test_labelled import write


def check(source):
    """A source survives the way to a worker process, opened or not, and numbers its samples."""
    fresh = pickle.loads(pickle.dumps(source))
    for index in range(len(source)):
        sample = source[index]
        assert sample["image"].dtype == np.uint8 and sample["image"].shape[2] == 3
        assert isinstance(sample["label"], int)
        np.testing.assert_array_equal(sample["image"], fresh[index]["image"])
    assert pickle.loads(pickle.dumps(source))[0]["label"] == source[0]["label"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    files = ["b/2.PNG", "a/deep/er/1.png", "a/0.png", "top.png", "a/.hidden.png", ".git/x.png", "a/notes.txt"]
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(photograph(seed=number)))
    return root


def test_folder_is_sorted_and_labelled_by_its_first_level(folder):
    source = open_source("folder", str(folder))
    assert [source.name(i) for i in range(len(source))] == ["a/0.png", "a/deep/er/1.png", "b/2.PNG", "top.png"]
    assert [source[i]["label"] for i in range(4)] == [0, 0, 1, -1]
    assert source.class_names == ("a", "b")
    np.testing.assert_array_equal(source[2]["image"], photograph(seed=0))
    check(source)


def test_a_single_image_needs_no_list_of_its_folder(folder, monkeypatch):
    monkeypatch.setattr(os, "walk", None)
    source = open_path(str(folder / "a" / "0.png"))
    assert len(source) == 1 and source.name(0) == "0.png" and source[0]["label"] == -1
    check(source)


def test_folder_without_subfolders_has_no_labels(folder):
    source = open_source("folder", str(folder / "b"))
    assert source.class_names == () and source[0]["label"] == -1


def test_folder_follows_links_but_not_in_circles(folder, tmp_path):
    (folder / "b" / "circle").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.png").write_bytes(encode(photograph()))
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    source = open_source("folder", str(folder))
    assert len(source) == 5 and source.class_names == ("a", "b", "c")


@pytest.fixture(params=["images.tar", "images.tar.gz"])
def archive(request, tmp_path, folder):
    path = tmp_path / request.param
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name in ("b/2.PNG", "a/0.png", "a/notes.txt", "a/.hidden.png"):
            file.add(folder / name, f"./{name}")
    return path


def test_tar_is_read_at_random(archive):
    source = open_source("tar", str(archive))
    assert [source.name(i) for i in range(len(source))] == ["a/0.png", "b/2.PNG"]
    assert [source[i]["label"] for i in (0, 1)] == [0, 1] and source.class_names == ("a", "b")
    np.testing.assert_array_equal(source[1]["image"], photograph(seed=0))
    check(source)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cats/1.png", "dogs/2.png"], ("cats", "dogs")),
        (["train/cats/1.png", "val/cats/1.png", "val/dogs/2.png"], ("cats", "dogs")),
        (["set/cats/1.png", "/set//./dogs/2.png"], ("cats", "dogs")),
        (["../set/cats/1.png", "set/2.png", "logo.png"], ("cats", "set")),
        (["1.png", "./.hidden/2.png", "a/.3.png"], ()),
    ],
)
def test_the_class_in_a_tar_is_the_folder_of_the_image(tmp_path, names, classes):
    (tmp_path / "image.png").write_bytes(encode(photograph()))
    with tarfile.open(tmp_path / "images.tar", "w") as file:
        for name in names:
            file.add(tmp_path / "image.png", name)
    source = open_source("tar", str(tmp_path / "images.tar"))
    assert source.class_names == classes
    labels = {source.name(i): source[i]["label"] for i in range(len(source))}
    assert labels[names[0]] == (0 if classes else -1)
    assert len(source) == (len(names) if classes else 1)


def test_a_file_system_that_is_away_for_a_moment_is_waited_for(folder, monkeypatch, capsys):
    source = open_source("folder", str(folder))
    expected, read = source[0]["image"], FolderFiles.read
    answers, waited = [], []

    def flaky(files, name):
        if answers:
            raise OSError(answers.pop(0), "the server does not answer")
        return read(files, name)

    monkeypatch.setattr(FolderFiles, "read", flaky)
    monkeypatch.setattr(images.time, "sleep", waited.append)
    answers += [errno.ESTALE, errno.EIO]
    np.testing.assert_array_equal(source[0]["image"], expected)
    assert waited == [0.5, 2.0]
    assert capsys.readouterr().err == "a/0.png cannot be read (the server does not answer): trying for 10.5 s\n"
    answers += [errno.EIO] * 4
    with pytest.raises(BadImage, match=r"OSError: .*does not answer"):
        source[0]
    assert waited[2:] == [0.5, 2.0, 8.0]
    answers += [errno.EACCES]
    with pytest.raises(BadImage, match="PermissionError"):
        source[0]
    assert len(waited) == 5


def test_what_the_machine_lacks_is_no_fault_of_the_image(folder, monkeypatch):
    source, waited = open_source("folder", str(folder)), []

    def read(files, name):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(FolderFiles, "read", read)
    monkeypatch.setattr(images.time, "sleep", waited.append)
    with pytest.raises(OSError, match="Too many open files"):
        source[0]
    assert waited == [0.5, 2.0, 8.0]

    def decode(encoded):
        raise MemoryError

    monkeypatch.setattr(decoding, "_open", decode)
    with pytest.raises(MemoryError):
        decoding.decode(b"any")


def test_names_are_kept_as_they_are():
    names = ["a/b.png", "", "\u6f22/\udce9.jpg", "c.jpg"]
    kept = images.Names(names)
    assert list(kept) == names == pickle.loads(pickle.dumps(kept))[:] and kept[-1] == "c.jpg"
    with pytest.raises(IndexError):
        kept[4]
    assert len(images.Names([])) == 0


def test_a_tar_is_opened_anew_after_an_error(folder, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "images.tar", "w") as file:
        file.add(folder / "a", "a")
    source, read = open_source("tar", str(tmp_path / "images.tar")), os.pread
    expected, answers = source[0]["image"], [errno.ESTALE]

    def flaky(descriptor, size, offset):
        if answers:
            raise OSError(answers.pop(), "stale file handle")
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", flaky)
    monkeypatch.setattr(images.time, "sleep", lambda _: None)
    opened = source._files._file
    np.testing.assert_array_equal(source[0]["image"], expected)
    assert source._files._file is not opened


def test_damaged_archives_are_refused_in_one_line(archive, tmp_path, monkeypatch):
    cut = tmp_path / f"cut{archive.suffix}"
    cut.write_bytes(archive.read_bytes()[: archive.stat().st_size // 3])
    with pytest.raises(ValueError, match="not a readable tar"):
        open_source("tar", str(cut))
    if archive.suffix == ".gz":
        monkeypatch.setattr(tar, "MAX_UNPACKED_BYTES", 100)
        with pytest.raises(ValueError, match="run gunzip"):
            open_source("tar", str(archive))


@pytest.mark.parametrize(("kept", "files"), [(3, 3), (2, 2), (2.5, 2)])
def test_an_archive_that_was_cut_between_files_is_told(tmp_path, capsys, kept, files):
    """Three files of a block each, with a block of header, and the mark of the end."""
    with tarfile.open(tmp_path / "images.tar", "w") as file:
        for number in range(3):
            member = tarfile.TarInfo(f"a/{number}.png")
            member.size = tarfile.BLOCKSIZE
            file.addfile(member, io.BytesIO(bytes(member.size)))
    assert len(open_source("tar", str(tmp_path / "images.tar"))) == 3
    assert capsys.readouterr().err == ""
    with (tmp_path / "images.tar").open("r+b") as file:
        file.truncate(int(kept * 2 * tarfile.BLOCKSIZE) - (100 if kept % 1 else 0))
    assert len(open_source("tar", str(tmp_path / "images.tar"))) == files
    assert f"has no mark of its end: it may have been cut off after {files} files" in capsys.readouterr().err


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"a\.gif is neither an image \(\.jpg .*\) nor a tar or tar\.gz"):
        open_path(str(tmp_path / "a.gif"))


def test_other_compressions_are_refused(folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as file:
        file.add(folder / "a")
    with pytest.raises(ValueError, match="not a readable tar"):
        open_source("tar", str(tmp_path / "images.tar.xz"))


def test_a_folder_is_no_archive(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: set data\.source=folder, or give"):
        open_source("tar", str(tmp_path))


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def walk(folder, *, onerror, **_):
        onerror(PermissionError(13, "Permission denied", f"{folder}/private"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(ValueError, match=r"private cannot be listed \(Permission denied\): make it readable"):
        open_source("folder", str(tmp_path))


def test_folders_that_lead_to_each_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(encode(photograph()))
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert open_files(tmp_path).names == ("a/0.png",)
    assert len(open_source("folder", str(tmp_path))) == 1


def test_tar_without_images(tmp_path):
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match=r"no images found in .*empty\.tar \(looked for \.jpg"):
        open_source("tar", str(tmp_path / "empty.tar"))
    (tmp_path / "text.tar.gz").write_bytes(gzip.compress(b"hello" * 1000))
    with pytest.raises(ValueError, match="not a readable tar"):
        open_source("tar", str(tmp_path / "text.tar.gz"))


def test_shared_objects(shared_data):
    source = open_source("tar", str(shared_data / "objects-test.tar.gz"))
    assert len(source) == 1800 and len(source.class_names) == 10
    assert source[0]["image"].shape == (96, 96, 3)
    assert np.bincount([source[i]["label"] for i in range(0, 1800, 20)]).tolist() == [9] * 10


def test_a_damaged_record_is_a_bad_image_and_the_others_stay(tmp_path):
    pytest.importorskip("array_record")
    file = tmp_path / "0.array_record"
    encoded = [encode(photograph(48, 56, seed)) for seed in range(8)]
    arrayrecord.write(file, [(image, seed) for seed, image in enumerate(encoded)])
    content = file.read_bytes()
    assert encoded[3][20:] in content
    file.write_bytes(content.replace(encoded[3][20:], bytes(len(encoded[3]) - 20)))
    source, damaged = open_source("arrayrecord", str(file)), []
    for index in range(8):
        try:
            assert source[index]["label"] == index
        except BadImage as error:
            damaged.append((index, str(error).split()[0]))
    assert damaged == [(3, "Corrupted")]


def test_records_that_are_away_for_a_moment_are_waited_for(tmp_path, monkeypatch, capsys):
    pytest.importorskip("array_record")
    arrayrecord.write(tmp_path / "0.array_record", [(encode(photograph()), 3)])
    source = open_source("arrayrecord", str(tmp_path))

    class Away:
        def __getitem__(self, index):
            raise RuntimeError("the server does\nnot answer")

    monkeypatch.setattr(images.time, "sleep", lambda seconds: None)
    source._records = Away()
    assert source[0]["label"] == 3
    assert capsys.readouterr().err == "record 0 cannot be read (the server does not answer): trying for 10.5 s\n"


def test_arrayrecord_round_trip(tmp_path):
    pytest.importorskip("array_record")
    images = [photograph(seed=seed) for seed in range(5)]
    arrayrecord.write(tmp_path / "0.array_record", [(encode(image), seed) for seed, image in enumerate(images[:3])])
    arrayrecord.write(tmp_path / "1.array_record", [(encode(image), -1) for image in images[3:]] + [(b"", 7)])
    source = open_source("arrayrecord", str(tmp_path))
    assert len(source) == 6
    assert [source[i]["label"] for i in range(5)] == [0, 1, 2, -1, -1]
    np.testing.assert_array_equal(source[4]["image"], images[4])
    with pytest.raises(BadImage, match="empty"):
        source[5]
    assert source.name(4) == "record 4"
    check(open_source("arrayrecord", str(tmp_path / "0.array_record")))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no records found"):
        open_source("arrayrecord", str(tmp_path / "none"))
    (tmp_path / "bad.array_record").write_bytes(b"no record" * 100)
    with pytest.raises(ValueError, match="not a readable ArrayRecord"):
        open_source("arrayrecord", str(tmp_path / "bad.array_record"))


def test_classes_of_arrayrecords_have_the_names_that_are_listed(tmp_path):
    pytest.importorskip("array_record")
    image = encode(photograph())
    arrayrecord.write(tmp_path / "train.array_record", [(image, 0), (image, 1)])
    arrayrecord.write(tmp_path / "test.array_record", [(image, 1), (image, -1), (image, 2)])
    train, test = (str(tmp_path / f"{name}.array_record") for name in ("train", "test"))
    with pytest.raises(ValueError, match=r"no class folders: .* or ArrayRecords with classes\.txt"):
        open_labelled(train, test)
    (tmp_path / "classes.txt").write_text("cat\na dog\n")
    data = open_labelled(train, test)
    assert data.class_names == ("cat", "a dog")
    assert [data.train[0]["label"], data.test[0]["label"], data.test[1]["label"]] == [0, 1, -1]
    with pytest.raises(BadImage, match=r"its label is 2, but classes\.txt names 2 classes"):
        data.test[2]
    (tmp_path / "originals").mkdir()  # no class without an image
    assert open_labelled(train, test).class_names == ("cat", "a dog")
    wrong = ((b"cat\ncat\n", "has 'cat' 2 times"), (b"cat\n\ndog", "has '' 1 times"), (b"\xe9", "is not a text"))
    for text, words in wrong:
        (tmp_path / "classes.txt").write_bytes(text)
        with pytest.raises(ValueError, match=rf"classes\.txt .*{words}"):
            open_labelled(train, test)


def test_arrayrecord_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("array_record"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "x.array_record").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install -e '\.\[features\]'"):
        open_source("arrayrecord", str(tmp_path))


def test_open_source_names_the_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"got 'foldre'; did you mean 'folder'\?"):
        open_source("foldre", str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        open_source("folder", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="it is empty, but data source"):
        open_source("tar", "")
    with pytest.raises(ValueError, match=r"no images found in .* \(looked for \.jpg \.jpeg \.png"):
        open_source("folder", str(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a folder"):
        open_source("folder", str(tmp_path / "file"))


@pytest.mark.parametrize("window_size", [32, 64, 96])
def test_packaged_splits_share_no_pixel_and_cover_the_photographs(window_size):
    windows = {}
    for split, number in (("train", 300), ("test", 100)):
        source = PackagedSource(split=split, window_size=window_size, windows_per_photograph=number)
        windows[split] = np.array([source.window(i) for i in range(len(source))]).reshape(len(PHOTOGRAPHS), number, 4)
    for photograph_number, name in enumerate(PHOTOGRAPHS):
        shape = read_photograph(name).shape[:2]
        covered = {split: np.zeros(shape, bool) for split in windows}
        for split, mask in covered.items():
            for top, left, bottom, right in windows[split][photograph_number]:
                assert 0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]
                mask[top:bottom, left:right] = True
        assert not (covered["train"] & covered["test"]).any()
        if max(shape) <= 512:  # the others are too large for so few windows
            assert covered["train"].mean() > 0.35 and covered["test"].mean() > 0.15


def test_packaged_is_labelled_and_fixed():
    source = PackagedSource(split="test", window_size=32, windows_per_photograph=3)
    assert len(source) == 48 and len(source.class_names) == len(set(source.class_names)) == 16
    assert [source[i]["label"] for i in range(48)] == [i // 3 for i in range(48)]
    assert source[0]["image"].shape == (32, 32, 3)
    assert source.name(3).startswith("brick.png[")
    check(source)


def test_packaged_photographs_are_colourful_and_grey():
    """The set would be too easy if colour alone told the photographs apart."""
    grey = [name for name in PHOTOGRAPHS if np.ptp(read_photograph(name).astype(int), axis=-1).max() == 0]
    assert 6 <= len(grey) <= 10


def test_packaged_names_windows_that_do_not_fit():
    with pytest.raises(ValueError, match=r"windows of 224 px are too large for .*choose 96 or less"):
        PackagedSource(split="train", window_size=224, windows_per_photograph=1)
    with pytest.raises(ValueError, match="split must be one of"):
        PackagedSource(split="validation", window_size=32, windows_per_photograph=1)


def test_labels_are_known_from_the_first_readable_image():
    class Records:
        class_names = ()

        def __init__(self, bad, label):
            self.bad, self.label = bad, label

        def __len__(self):
            return 20

        def __getitem__(self, index):
            if index < self.bad:
                raise BadImage("damaged")
            return {"label": self.label}

    assert has_labels(Records(3, 0))
    assert not has_labels(Records(3, -1))
    assert not has_labels(Records(20, 0))


def test_one_class_is_no_labels(tmp_path):
    write(tmp_path, ["all"])
    assert not has_labels(open_path(str(tmp_path)))
    write(tmp_path, ["more"])
    assert has_labels(open_path(str(tmp_path)))


def test_links_in_a_tar_are_files(tmp_path, capsys):
    folder = tmp_path / "images"
    write(folder, ["a", "b"])
    (folder / "b" / "hard.png").hardlink_to(folder / "a" / "0.png")
    (folder / "b" / "soft.png").symlink_to("../a/1.png")
    (folder / "a" / "twice.png").symlink_to("../b/soft.png")
    (folder / "a" / "lost.png").symlink_to("/nowhere.png")
    (folder / "a" / "ring.png").symlink_to("ring.png")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, "images")
    files = open_files(tmp_path / "images.tar")
    assert "2 links to no file of the archive left out, such as images/a/lost.png" in capsys.readouterr().err
    for name in ("b/hard.png", "b/soft.png", "a/twice.png"):
        assert files.read(f"images/{name}") == (folder / name).read_bytes()
    assert len(files.names) == 9
    with tarfile.open(tmp_path / "images.tar", "a") as archive:  # what comes later counts
        archive.add(folder / "a" / "2.png", "images/b/soft.png")
    assert open_files(tmp_path / "images.tar").read("images/b/soft.png") == (folder / "a" / "2.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VOC2012/SegmentationClass/1.png", True),
        ("VOC2012/SegmentationClassAug/1.png", True),
        ("CUB_200_2011/segmentations/001/1.png", True),
        ("data/masks/1.png", True),
        ("ADEChallengeData2016/annotations/training/1.png", True),
        ("CamVid/trainannot/1.png", True),
        ("segmentation/train/images/1.jpg", False),  # a folder of photographs, with their masks beside them
        ("VOC2012/JPEGImages/1.jpg", False),
    ],
)
def test_maps_are_told_from_photographs_by_their_folders(name, expected):
    assert is_label(name) == expected
