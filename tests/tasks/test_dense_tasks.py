"""The dense tasks from files to numbers: data that pixels solve, and features that know nothing."""

import weakref
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from dino_jax import evaluate, host_memory, pretrained
from dino_jax.data.objects import open_objects
from dino_jax.evals.discovery import token_cut
from dino_jax.tasks import correspondence, depth, discovery, segmentation, tracking
from dino_jax.tasks.patches import PatchFeatures, PixelPatches
from tests.tasks import planted
from tests.tasks.planted import PATCH, Blind, options

PIXELS = PixelPatches(PATCH)


class Loaded(PixelPatches):
    """What stands in for a loaded network."""

    backbone = SimpleNamespace(in_channels=3)


def checked(result):
    """Checks what every task promises, and returns its numbers."""
    assert all(isinstance(value, float) and np.isfinite(value) for value in result.numbers.values())
    assert all(len(row) == len(result.rows[0]) for row in result.rows)
    for picture in result.pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 100
    return result.numbers


@pytest.mark.parametrize("head", ["closed", "trained"])
def test_segmentation_of_planted_classes(tmp_path, head):
    words = ("--data", planted.masks(tmp_path / "data"), "--size", 0, "--crop", 32, "--head", head, "--batch-size", 4)
    words += ("--steps", 60, "--views", 4, "--learning-rate", 0.05) if head == "trained" else ()
    numbers = checked(segmentation.run(PIXELS, options("segmentation", *words, "--pixels"), tmp_path))
    assert numbers["segmentation/miou"] > 0.9
    assert numbers["segmentation/pixels_miou"] == numbers["segmentation/miou"]
    numbers = checked(segmentation.run(Blind(PATCH), options("segmentation", *words), tmp_path))
    assert numbers["segmentation/miou"] == pytest.approx(1 / 9)  # all is one of three classes, of equal size


@pytest.mark.parametrize("head", ["closed", "trained"])
def test_segmentation_of_images_of_one_class_is_perfect(tmp_path, head):
    for split in ("train", "val"):
        for label in range(3):
            mask = planted.grid_of(np.full((4, 6), label))
            planted.save(planted.COLORS[mask], tmp_path / split / "images" / f"{label}.png")
            planted.save(mask, tmp_path / split / "masks" / f"{label}.png")
    words = ("--data", tmp_path, "--size", 0, "--crop", 32, "--head", head, "--batch-size", 4)
    words += ("--steps", 40, "--views", 4, "--learning-rate", 0.05) if head == "trained" else ()
    numbers = checked(segmentation.run(PIXELS, options("segmentation", *words), tmp_path))
    assert numbers["segmentation/miou"] == 1


def test_a_class_without_training_pixels_is_named(tmp_path, capsys):
    data = planted.masks(tmp_path / "data")
    (data / "classes.txt").write_text("0 red\n1 green\n2 blue\n3 unicorn\n")
    words = ("--data", data, "--size", 0, "--crop", 32, "--head", "closed")
    result = segmentation.run(PIXELS, options("segmentation", *words), tmp_path)
    checked(result)
    assert ["IoU of unicorn", "absent"] in result.rows
    assert ["without a training pixel: unicorn", "1"] in result.rows
    shown = capsys.readouterr().err
    assert "training masks: 100%" in shown and "val masks: 100%" in shown


def test_fresh_crops_train_too(tmp_path):
    words = ("--data", planted.masks(tmp_path / "data"), "--size", 48, "--crop", 32, "--batch-size", 4, "--steps", 20)
    numbers = checked(segmentation.run(PIXELS, options("segmentation", *words, "--learning-rate", 0.05), tmp_path))
    assert numbers["segmentation/miou"] > 0.6


def test_windows_of_images_of_many_sizes():
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 56), (24, 24), (40, 56), (17, 90))]
    features = PatchFeatures(PIXELS, batch_size=4)
    maps = segmentation.class_maps(features, lambda patches: patches[..., :2], images, side=0, crop=32)
    assert [array.shape for array in maps] == [(*image.shape[:2], 2) for image in images]
    alone = segmentation.class_maps(features, lambda patches: patches[..., :2], images[2:3], side=0, crop=32)
    np.testing.assert_allclose(maps[2], alone[0], atol=1e-5)


def test_depth_of_planted_brightness(tmp_path):
    data = planted.depths(tmp_path / "data", images=depth.PICTURES + 2)
    words = ("--data", data, "--size", 0, "--steps", 300, "--views", 2)
    words = (*words, "--learning-rate", 0.03)
    numbers = checked(depth.run(PIXELS, options("depth", *words), tmp_path))
    blind = checked(depth.run(Blind(PATCH), options("depth", *words, "--steps", 1), tmp_path))
    assert numbers["depth/scaled_abs_rel"] < 0.5 * blind["depth/scaled_abs_rel"]
    # Maps are blurred between patches, whose depths jump.
    assert numbers["depth/scaled_delta1"] > blind["depth/scaled_delta1"] + 0.2
    assert numbers["depth/scaled_abs_rel"] < numbers["depth/average_scaled_abs_rel"]
    maps = {split: [truth for _, truth in depth.open_depths(data, split)] for split in ("train", "test")}
    errors = [np.abs(np.mean(maps["train"], axis=0) - truth) / truth for truth in maps["test"]]
    assert numbers["depth/average_abs_rel"] == pytest.approx(np.mean(errors), rel=1e-5)
    # The same depth everywhere fits a map best where it is the map's mean.
    errors = [np.abs(truth.mean() - truth) / truth for truth in maps["test"]]
    assert blind["depth/scaled_abs_rel"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_depth_that_is_the_brightness_of_the_whole_image_is_found(tmp_path):
    for split, values in (("train", range(60, 250, 20)), ("test", range(70, 240, 25))):
        for value in values:
            depth_map = np.full((PATCH, PATCH), value, np.uint8)
            planted.save(depth_map[..., None].repeat(3, -1), tmp_path / split / "images" / f"{value}.png")
            planted.save(depth_map, tmp_path / split / "depth" / f"{value}.png")
    words = ("--data", tmp_path, "--size", 0, "--steps", 200, "--views", 2, "--learning-rate", 0.03)
    numbers = checked(depth.run(PIXELS, options("depth", *words), tmp_path))
    assert numbers["depth/delta1"] == 1 > 2 * numbers["depth/average_delta1"]


def test_depth_that_nothing_knows_is_said_before_the_training(tmp_path):
    folder = planted.depths(tmp_path / "data")
    one = next((folder / "test" / "depth").iterdir())
    Image.fromarray(np.zeros_like(np.asarray(Image.open(one)))).save(one)
    with pytest.raises(ValueError, match=f"the depth of test/images/{one.stem}.* is not known anywhere: leave"):
        depth.run(PIXELS, options("depth", "--data", folder, "--size", 0, "--steps", 10**9), tmp_path)


def rewritten(folder, change):
    """Changes every map of a folder."""
    for file in folder.iterdir():
        Image.fromarray(change(np.asarray(Image.open(file)))).save(file)


def test_training_maps_that_know_nothing_are_said_before_the_training(tmp_path):
    data = planted.depths(tmp_path / "depths")
    rewritten(data / "train" / "depth", np.zeros_like)
    with pytest.raises(ValueError, match=r"split 'train': no depth is known$"):
        depth.run(PIXELS, options("depth", "--data", data, "--size", 0, "--steps", 10**9), tmp_path)
    data = planted.masks(tmp_path / "masks")
    (data / "classes.txt").write_text("".join(f"{label} class{label}\n" for label in range(9)))
    rewritten(data / "train" / "masks", lambda mask: np.full_like(mask, 255))
    with pytest.raises(ValueError, match="split 'train', is ignored: nothing can be learnt"):
        segmentation.run(PIXELS, options("segmentation", "--data", data, "--size", 0, "--steps", 10**9), tmp_path)


def test_relative_depth_and_metres_are_not_mixed(tmp_path):
    data = planted.depths(tmp_path / "data")
    rewritten(data / "test" / "depth", lambda values: 100 * values.astype(np.uint16))
    with pytest.raises(ValueError, match="one of train and test has relative depth, the other metres"):
        depth.run(PIXELS, options("depth", "--data", data, "--size", 0), tmp_path)


def test_depth_beyond_the_bins_is_unknown(tmp_path):
    data = planted.depths(tmp_path / "data")
    for split in ("train", "test"):
        rewritten(data / split / "depth", lambda values: 100 * values.astype(np.uint16))  # 6 to 25 metres
    seen = depth.Within(depth.open_depths(data, "train"), 10.0)
    whole = depth.Within(depth.open_depths(data, "train"), 30.0)
    assert seen.high == 10 and not seen.relative
    np.testing.assert_array_equal(seen[0][1], np.where(whole[0][1] > 10, 0, whole[0][1]))
    assert (whole[0][1] > 10).any() and (seen[0][1] > 0).any()


def test_images_of_several_shapes_keep_theirs():
    seen = []

    class Spying(PatchFeatures):
        def __call__(self, images):
            seen.append(images.shape[:3])
            return super().__call__(images)

    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((16, 32), (32, 16), (16, 32))]
    grids = Spying(PIXELS, batch_size=4).of_sizes(images, 16)
    assert sorted(seen) == [(1, 32, 16), (2, 16, 32)]
    for image, grid in zip(images, grids, strict=True):
        np.testing.assert_allclose(grid, PatchFeatures(PIXELS, batch_size=1)(image[None])[0], atol=1e-6)


def test_masks_that_nothing_labels_are_said_before_the_training(tmp_path):
    folder = planted.masks(tmp_path / "data")
    for mask in (folder / "val" / "masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)
    with pytest.raises(ValueError, match="split 'val', is ignored: nothing can be scored"):
        segmentation.run(PIXELS, options("segmentation", "--data", folder, "--size", 0, "--steps", 10**9), tmp_path)


def test_tracking_of_a_moving_square(tmp_path):
    words = ("--data", planted.video(tmp_path / "data"), "--size", 0)
    (tmp_path / "tracking_earlier.gif").touch()
    result = tracking.run(PIXELS, options("tracking", *words, "--pixels"), tmp_path)
    numbers = checked(result)
    assert numbers["tracking/jf"] > 0.85
    assert numbers["tracking/jf"] == pytest.approx((numbers["tracking/j"] + numbers["tracking/f"]) / 2)
    assert list(tmp_path.glob("*.gif")) == [result.pictures[1]]
    with Image.open(result.pictures[1]) as gif:
        assert gif.n_frames == 5
    blind = checked(tracking.run(Blind(PATCH), options("tracking", *words), tmp_path))
    assert blind["tracking/j"] <= 1 / 9  # that of a mask that stays: 1/3 and twice 0


def test_every_object_counts_alike_whatever_its_video():
    scores = {"a": {1: (1.0, 1.0), 2: (0.0, 0.0)}, "b": {1: (1.0, 0.0)}}
    assert tracking._means(scores) == pytest.approx((1 / 2, 2 / 3, 1 / 3))


def test_discovery_of_a_square(tmp_path):
    words = ("--data", planted.video(tmp_path / "data"), "--size", 0, "--limit", 6)
    numbers = checked(discovery.run(PIXELS, options("discovery", *words), tmp_path))
    assert numbers["discovery/corloc"] == 1 and numbers["discovery/mask_miou"] == 1
    # The square has 4 of the 54 patches, the middle 13.5.
    assert numbers["discovery/middle_corloc"] == 0 and 0 < numbers["discovery/middle_mask_miou"] < 4 / 13
    blind = checked(discovery.run(Blind(PATCH), options("discovery", *words), tmp_path))
    assert blind["discovery/corloc"] < 0.2


def test_discovery_cuts_on_the_keys_of_a_transformer(tmp_path, monkeypatch, model):
    seen = []
    monkeypatch.setattr(discovery, "token_cut", lambda grid, **more: seen.append(grid) or token_cut(grid, **more))
    data = planted.video(tmp_path / "data")
    checked(discovery.run(model, options("discovery", "--data", data, "--size", 0, "--limit", 1), tmp_path))
    image = open_objects(data)[0].image
    np.testing.assert_allclose(seen[0], model.keys(model.normalize(image[None]))[0], atol=1e-5)


def test_points_of_a_square_stay_on_it(tmp_path):
    words = ("--data", planted.video(tmp_path / "data"), "--size", 0, "--pairs", "videos")
    numbers = checked(correspondence.run(PIXELS, options("correspondence", *words), tmp_path))
    assert numbers["correspondence/on_object"] > 0.95
    assert numbers["correspondence/chance_on_object"] == pytest.approx(4 / 54)
    blind = checked(correspondence.run(Blind(PATCH), options("correspondence", *words), tmp_path))
    assert blind["correspondence/on_object"] < 0.3
    for mask in (tmp_path / "data").glob("*/masks/*.png"):
        if mask.stem != "00000":
            planted.save(np.zeros_like(np.asarray(Image.open(mask))), mask)
    with pytest.raises(ValueError, match=r"no pair has points to seek; .* seen again 1, 5, 10 or 20 frames later"):
        correspondence.run(PIXELS, options("correspondence", *words), tmp_path)


def test_points_of_photographs_are_found_in_distorted_copies(tmp_path):
    # A field of smooth colours in which every place is unlike the others.
    rows, columns = np.mgrid[0:96, 0:128] / 128
    field = np.stack([columns, rows, 0.5 + 0.5 * np.sin(9 * (rows + columns))], axis=-1)
    planted.save(np.round(255 * field).astype(np.uint8), tmp_path / "data" / "a.png")
    words = ("--data", tmp_path / "data", "--size", 0, "--points", 16)
    numbers = checked(correspondence.run(PIXELS, options("correspondence", *words), tmp_path))
    assert numbers["correspondence/pck_0.2"] > 0.5
    blind = checked(correspondence.run(Blind(PATCH), options("correspondence", *words), tmp_path))
    assert blind["correspondence/pck_0.1"] < 0.2


def test_only_the_pairs_that_are_drawn_stay_in_memory():
    videos = []

    def pairs():
        for number in range(60):
            assert sum(video() is not None for video in videos) <= 2
            video = np.zeros((2, 16, 16, 3), np.uint8)
            videos.append(weakref.ref(video))
            points = np.full((1, 2), 0.5)
            yield correspondence.Pair(f"{number}", "", video[0], video[1], points, truth=points)

    features = PatchFeatures(PIXELS, batch_size=1)
    _, shown = correspondence._score(features, pairs(), options("correspondence", "--data", "", "--size", 0))
    assert [name.partition(":")[0] for name, _ in shown] == ["0", "9", "27", "45"]


def test_two_images_are_matched(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    planted.save(image, tmp_path / "a.png")
    words = ("--data", tmp_path / "a.png", "--other", tmp_path / "a.png", "--size", 0)
    numbers = checked(correspondence.run(PIXELS, options("correspondence", *words), tmp_path))
    assert numbers["correspondence/mutual_share"] == 1 and numbers["correspondence/mutual_cosine"] > 0.999
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b.png: not an image"):
        words = ("--data", tmp_path / "a.png", "--other", tmp_path / "b.png", "--size", 0)
        correspondence.run(PIXELS, options("correspondence", *words), tmp_path)


@pytest.mark.parametrize("task", [tracking, discovery, correspondence])
def test_the_year_of_davis_chooses_the_list(tmp_path, task):
    data = tmp_path / "data"
    for video in planted.video(tmp_path / "videos").iterdir():
        for kind, folder in (("frames", "JPEGImages"), ("masks", "Annotations")):
            (data / folder / "480p").mkdir(parents=True, exist_ok=True)
            (video / kind).rename(data / folder / "480p" / video.name)
    (data / "ImageSets" / "480p").mkdir(parents=True)
    (data / "ImageSets" / "480p" / "val.txt").write_text("left\n")
    name = task.__name__.rpartition(".")[2]
    words = ("--data", data, "--size", 0, *(("--pairs", "videos") if task is correspondence else ()))
    checked(task.run(PIXELS, options(name, *words, "--year", 2016), tmp_path))
    with pytest.raises(ValueError, match=r"lacks ImageSets/2017/val.txt"):
        task.run(PIXELS, options(name, *words), tmp_path)


@pytest.mark.parametrize(
    "task, damage, message",
    [
        ("segmentation", "val/masks/1.png", "has no mask of the same name"),
        ("depth", "test/depth/1.png", "has no depth map of the same name"),
        ("tracking", "left/masks/00001.png", "every frame needs a mask"),
        ("discovery", "left/masks/00001.png", "every frame needs a mask"),
    ],
)
def test_damaged_data_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, task, damage, message):
    write = {"segmentation": planted.masks, "depth": planted.depths}.get(task, planted.video)
    (write(tmp_path / "data") / damage).unlink()
    monkeypatch.setattr(pretrained, "load", lambda weights, **_: (Loaded(PIXELS.patch_size), None))
    numbers = tmp_path / "numbers.json"
    words = [task, "--weights", "planted", "--data", str(tmp_path / "data"), "--json", str(numbers)]
    assert evaluate.main([*words, "--out", str(tmp_path / "out"), "--size", "0"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not numbers.exists() and not list((tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize("task", [tracking, discovery])
def test_a_damaged_frame_is_said_before_any_work(tmp_path, task, monkeypatch):
    (planted.video(tmp_path / "data") / "right" / "frames" / "00003.png").write_bytes(b"no image")
    monkeypatch.setattr(PatchFeatures, "__call__", lambda *_: pytest.fail("features were computed"))
    name = task.__name__.rpartition(".")[2]
    with pytest.raises(ValueError, match=r"right/frames/00003.png .*not an image"):
        task.run(PIXELS, options(name, "--data", tmp_path / "data", "--size", 0), tmp_path)


@pytest.mark.parametrize(
    "task, words", [(tracking, "--temperature nan"), (discovery, "--threshold nan"), (discovery, "--threshold 5")]
)
def test_numbers_that_cannot_be_are_said_before_any_work(tmp_path, task, words):
    name = task.__name__.rpartition(".")[2]
    with pytest.raises(ValueError, match=f"^{words} must"):
        task.run(PIXELS, options(name, "--data", tmp_path / "nowhere", *words.split()), tmp_path)


def test_wrong_options_and_networks_are_one_line(tmp_path):
    data = planted.masks(tmp_path / "data")
    for words, message in (
        (("--crop", 0), "--crop 0 must be 1 or more"),
        (("--size", -1), "--size -1 must be 0"),
        (("--head", "closed", "--ridge", -1), "--ridge -1 must be a number above 0"),
        (("--head", "closed", "--ridge", "nan"), "--ridge nan must be a number above 0"),
        (("--split", "dev"), "needs dev/images and dev/masks"),
    ):
        with pytest.raises(ValueError, match=message):
            segmentation.run(PIXELS, options("segmentation", "--data", data, *words), tmp_path)

    @jax.tree_util.register_static
    class WithoutPatches(PixelPatches):
        def __call__(self, images):
            return {"cls": images.mean(axis=(1, 2))}

    with pytest.raises(ValueError, match="raw pixels gives no patch features"):
        PatchFeatures(WithoutPatches(PATCH), batch_size=4)


def test_masks_of_classes_are_none_of_objects(tmp_path):
    data = planted.masks(tmp_path / "masks")
    for path in (data / "train" / "masks").iterdir():  # without background
        Image.fromarray(np.asarray(Image.open(path)) % 250 + 1).save(path)
    words = ("--data", data / "train", "--size", 0)
    with pytest.raises(ValueError, match=r"in (\d+) of \1 masks the object reaches all edges of its image: class"):
        discovery.run(PIXELS, options("discovery", *words), tmp_path)
    checked(discovery.run(PIXELS, options("discovery", *words, "--limit", 1), tmp_path))  # one may well be filled


# Two copies of the features of 4 images, of 4 x 6 patches and 48 dimensions, take 36864 bytes without the images.
@pytest.mark.parametrize(
    ("words", "memory"), [(("--views", 1), 1000), (("--head", "closed"), 1000), (("--head", "closed"), 40000)]
)
def test_features_that_memory_cannot_hold_are_refused(tmp_path, monkeypatch, words, memory):
    monkeypatch.setattr(host_memory, "of_process", lambda: memory)
    data = planted.masks(tmp_path / "masks")
    with pytest.raises(ValueError, match=r"take 0\.0 GiB of memory, but only 0\.0 are there: .*--limit"):
        segmentation.run(PIXELS, options("segmentation", "--data", data, "--size", 0, *words), tmp_path)
