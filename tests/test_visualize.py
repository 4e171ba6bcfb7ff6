import tarfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import dino_jax
from dino_jax import pretrained, views, visualize
from dino_jax.data.sources import open_path
from dino_jax.pictures.page import GAP
from tests.data.images import encode, photograph
from tests.tiny_model import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def folder(tmp_path):
    for name, shape in (("cats/a", (24, 32)), ("cats/b", (40, 24)), ("dogs/a", (27, 30))):
        file = tmp_path / "images" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photograph(*shape)))
    return tmp_path / "images"


@pytest.fixture(scope="module")
def convolutional():
    return dino_jax.load("random:dino_resnet50", depths=(1, 1), channels=4)[0]


@pytest.fixture
def draw(tmp_path, model, monkeypatch, capsys):
    """Runs the command; returns its exit code, the files it names, and what it says on stderr."""
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: (model, model.params))

    def run(kind, images, *options):
        code = visualize.main(
            [kind, "--images", str(images), "--weights", "x", "--out", str(tmp_path / "out"), *options]
        )
        said = capsys.readouterr()
        files = [line.removeprefix(f"{tmp_path}/out/") for line in said.out.splitlines()]
        return SimpleNamespace(code=code, files=files, error=said.err, folder=tmp_path / "out")

    return run


def test_images_keep_their_shape_up_to_the_patch():
    assert views.to_patches(photograph(27, 30), size=0, patch=8).shape == (24, 32, 3)
    assert views.to_patches(photograph(24, 32), size=48, patch=8).shape == (48, 64, 3)
    assert views.to_patches(photograph(3, 30), size=0, patch=8).shape == (8, 32, 3)
    image = photograph(24, 32)
    np.testing.assert_array_equal(views.to_patches(image, size=0, patch=8), image)


def test_attention_leaves_registers_out_of_the_map(model):
    image = photograph(24, 32)
    found = views.cls_attention(model, image)
    whole = np.asarray(jax.jit(model.attention)(model.normalize(image[None])))[0, :, 0]
    assert found.maps.shape == (2, 3, 4)
    np.testing.assert_allclose(found.maps.reshape(2, -1), whole[:, 5:], atol=1e-6)
    np.testing.assert_allclose(found.shares, [[w[0], w[1:5].sum(), w[5:].sum()] for w in whole], atol=1e-6)
    np.testing.assert_allclose(found.shares.sum(1), 1, atol=1e-6)


def test_pca_draws_each_image_at_its_size_and_all_together(draw, folder):
    done = draw("pca", folder)
    assert done.files == ["pca.png", "pca/cats-a.png", "pca/cats-b.png", "pca/dogs-a.png"]
    sheet = np.asarray(Image.open(done.folder / "pca/cats-a.png"))
    np.testing.assert_array_equal(sheet[GAP : GAP + 24, GAP : GAP + 32], photograph(24, 32))
    assert draw("pca", folder, "--foreground", "--number", "1").files == ["pca.png", "pca/cats-b.png"]


def test_a_run_with_pictures_may_be_drawn_into(draw, folder, tmp_path):
    (tmp_path / "out" / "pictures").mkdir(parents=True)
    assert draw("pca", folder, "--number", "1").files == ["pca.png", "pca/cats-b.png"]


def test_attention_draws_every_head(draw, folder):
    done = draw("attention", folder, "--number", "1", "--size", "64")
    assert done.files == ["attention/cats-b.png"]
    width, height = Image.open(done.folder / done.files[0]).size
    # Image, mean and one head above the other head, as far apart as the shares in words need it.
    assert width > 3 * 64 + 4 * 6
    assert height > 2 * 104


def test_shares_are_told_in_words():
    assert visualize._shares(np.array([0.1, 0.3, 0.6])) == "patches 60%, registers 30%, CLS 10%"
    assert visualize._shares(np.array([0.4, 0.0, 0.6])) == "patches 60%, CLS 40%"


@pytest.mark.parametrize("kind", ["attention", "video"])
def test_a_network_without_attention_is_said_first(convolutional, draw, folder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: (convolutional, convolutional.params))
    monkeypatch.setattr(views, "open_some", lambda *_, **__: pytest.fail("images were opened"))
    done = draw(kind, folder)
    assert (done.code, done.error) == (2, "error: dino_resnet50 has no attention: it is not a transformer\n")
    assert not (tmp_path / "out").exists()


def test_a_video_is_named_like_its_folder(draw, tmp_path):
    for number in range(2):
        file = tmp_path / "bear" / "frames" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photograph(24, 32, seed=number)))
    for images in ("bear", "bear/frames"):
        assert draw("video", tmp_path / images).files[0] == "video-bear.gif"


def test_similarity_writes_one_page(draw, folder):
    done = draw("similarity", folder)
    assert done.files == ["similarity.html"]
    assert "cats/b.png" in (done.folder / "similarity.html").read_text()


def test_video_takes_frames_in_order_and_no_masks(draw, tmp_path, model):
    with tarfile.open(tmp_path / "videos.tar", "w") as archive:
        for name in ("bear", "cow"):
            for number in range(11):
                file = tmp_path / "frame"
                for member, image in (
                    (f"{name}/frames/{number}.png", photograph(24, 32, seed=number)),
                    (f"{name}/masks/{number}.png", photograph(24, 32)),
                ):
                    file.write_bytes(encode(image))
                    archive.add(file, member)
    source = open_path(str(tmp_path / "videos.tar"))
    found = views.sequences(source)
    assert list(found) == ["bear", "cow"]
    assert [source.name(index) for index in found["cow"]] == [f"cow/frames/{number}.png" for number in range(11)]
    done = draw("video", tmp_path / "videos.tar", "--sequence", "cow", "--number", "4")
    assert done.files[0] == "video-cow.gif"
    with Image.open(done.folder / "video-cow.gif") as written:
        assert (written.n_frames, written.size) == (4, (3 * 32 + 4 * GAP, 24 + 2 * GAP))
    missing = draw("video", tmp_path / "videos.tar", "--sequence", "cat")
    assert (missing.code, missing.error) == (2, "error: there is no sequence 'cat': there are bear, cow\n")


def test_masks_are_no_photographs():
    class Named(list):
        def name(self, index):
            return self[index]

    assert views.photographs(Named(["bear/frames/0.png", "bear/masks/0.png", "a.png"])) == [0, 2]
    assert views.photographs(Named(["train/0.png", "trainannot/0.png"])) == [0]
    assert views.photographs(Named(["masks/0.png", "masks/1.png"])) == [0, 1]


def test_out_is_checked_before_the_work(draw, folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    done = draw("pca", folder)
    assert done.code == 2 and "cannot be written" in done.error and done.error.count("\n") == 1


def test_sequences_of_one_name_stay_apart():
    names = ("a/cat/1.png", "b/cat/1.png", "b/dog/frames/1.png", "2.png")

    class Named(list):
        def name(self, index):
            return self[index]

    found = views.sequences(Named(names))
    assert found == {"a/cat": [0], "b/cat": [1], "dog": [2], "": [3]}


def test_bad_input_is_one_line(draw, folder, tmp_path):
    assert draw("pca", tmp_path / "none").error.startswith("error: ")
    assert draw("pca", folder, "--number", "0").error.startswith("error: --number and --fps must be positive")
    different = draw("video", folder, "--sequence", "cats")
    assert (different.code, different.error.count("\n")) == (2, 1)
    assert "the frames of cats differ in size: put the frames of each video" in different.error


def test_images_that_cannot_be_used_are_left_out(draw, folder):
    (folder / "cats" / "b.png").write_bytes(b"damaged")
    line = "cats/b.png cannot be used and is left out: not an image of a known format\n"
    some = "1 of 3 images are drawn: --number N draws more\n"
    done = draw("pca", folder)
    assert (done.code, done.error) == (0, line)
    assert done.files == ["pca.png", "pca/cats-a.png", "pca/dogs-a.png"]
    done = draw("attention", folder, "--number", "1")  # takes the next
    assert (done.code, done.error, done.files) == (0, some + line, ["attention/dogs-a.png"])
    (folder / "dogs" / "a.png").write_bytes(b"damaged")
    assert draw("attention", folder, "--number", "1").files == ["attention/cats-a.png"]  # there is none behind
    done = draw("video", folder, "--sequence", "cats")
    assert (done.code, done.error.count(line), done.files[0]) == (0, 1, "video-cats.gif")
    (folder / "cats" / "a.png").write_bytes(b"damaged")
    done = draw("similarity", folder)
    assert (done.code, done.error.count("\n"), done.files) == (2, 4, [])
    assert done.error.endswith("error: none of the 3 images can be used: the lines above say why\n")


def test_files_of_the_same_stem_do_not_meet(tmp_path):
    names = ["a.jpg", "a.png", "a-1.png", "b/c.jpg", "a-0.jpg", "a-0.png"]
    files = visualize._named_files(tmp_path, [(name, None) for name in names])
    assert len(set(files)) == len(names)
    assert files[2:4] == [tmp_path / "a-1.png", tmp_path / "b-c.png"]


def test_long_names_are_shortened_and_stay_apart(tmp_path):
    folder = "\u6f22" * 60
    names = [f"{folder}/{folder}/{name}.jpg" for name in ("a", "b")] + [
        f"{kind}/{folder}/{folder}.jpg" for kind in "cd"
    ]
    files = visualize._named_files(tmp_path, [(name, None) for name in names])
    assert len(set(files)) == 4
    for file in files:
        file.touch()
    assert files[0].name.endswith("-a.png") and files[1].name.endswith("-b.png")
