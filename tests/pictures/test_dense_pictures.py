import numpy as np
from PIL import Image

from dino_jax.pictures import boxes, colors, dense, matches, video
from dino_jax.pictures.page import GAP, PANEL


def photographs(count, size=(24, 40)):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def holds(path, color):
    """Tells whether a picture has pixels of about a colour."""
    return bool((abs(pixels(path).astype(int) - np.asarray(color)).max(axis=-1) < 4).any())


def test_colors_of_classes_differ():
    """The first 20 are Matplotlib's."""
    for classes, least, neighbours in ((2, 200, 200), (20, 15, 40), (21, 50, 140), (150, 12, 140), (255, 6, 140)):
        found = colors.class_colors(classes).astype(int)
        assert found.shape == (classes, 3)
        apart = abs(found[:, None] - found).max(axis=-1) + 999 * np.eye(classes, dtype=int)
        assert apart.min() > least and np.diagonal(apart, 1).min() > neighbours


def test_painting_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    two = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
    painted = colors.paint(image, np.array([[0, 1, 255]]), two, opacity=0.5)
    np.testing.assert_array_equal(painted[0], [[50, 50, 50], [150, 50, 50], [0, 0, 0]])


def test_class_maps_of_images_of_many_sizes(tmp_path):
    images = [photographs(1, size)[0] for size in ((24, 40), (40, 24))]
    maps = [np.full(image.shape[:2], label, np.uint8) for label, image in enumerate(images)]
    path = dense.masks(images, {"truth": maps, "found": maps}, ["sky", "road"], tmp_path / "m.png", title="Masks")
    for color in colors.class_colors(2):
        assert holds(path, color), "the legend shows every class that occurs"
    assert not list(tmp_path.glob(".*")), "nothing temporary is left"


def test_depth_maps(tmp_path):
    truth = np.linspace(1, 5, 24 * 40).reshape(1, 24, 40)
    truth[0, :6] = 0
    path = dense.depths(photographs(1), {"truth": truth, "found": truth + 9}, tmp_path / "d.png", title="Depth")
    assert holds(path, (128, 128, 128)), "unknown depth is grey"


def test_objects_are_painted_and_the_ground_is_not():
    frame = photographs(1)[0]
    mask = np.zeros((24, 40), int)
    mask[:4], mask[4:8], mask[8:10] = 1, 9, 255
    painted = video.overlay(frame, mask)
    np.testing.assert_array_equal(painted[8:], frame[8:])
    assert (painted[:8] != frame[:8]).any(axis=-1).mean() > 0.9


def test_strips_and_gifs(tmp_path):
    frames, masks = photographs(4), np.zeros((4, 24, 40), int)
    masks[:, :, :10] = 1
    strip = video.strips([("dog", frames, masks)], tmp_path / "s.png", title="Objects")
    assert min(pixels(strip).shape[:2]) > 50
    with Image.open(video.gif(frames, [masks, masks], tmp_path / "g.gif")) as film:
        assert film.n_frames == 4 and film.size[0] == 2 * PANEL + 3 * GAP and film.info["loop"] == 0


def test_boxes_found_and_true(tmp_path):
    mask, vector = np.zeros((3, 5), bool), np.linspace(-1, 1, 15).reshape(3, 5)
    mask[1, 2] = True
    rows = [(np.full((24, 40, 3), 128, np.uint8), [(1, 2, 20, 20)], (4.0, 4.0, 30.0, 22.0), mask, vector)] * 3
    path = boxes.discoveries(rows, tmp_path / "b.png", title="Objects found")
    assert holds(path, (0xE6, 0x9F, 0x00)) and holds(path, (0x56, 0xB4, 0xE9))


def test_matches_right_wrong_and_unjudged(tmp_path):
    images, points = np.full((2, 24, 40, 3), 128, np.uint8), np.array([[0.2, 0.5], [0.8, 0.5]])
    judged = matches.matches(
        [(*images, points, points, np.array([True, False]))], ["pair"], tmp_path / "m.png", title="Matches"
    )
    assert holds(judged, (0x00, 0x9E, 0x73)) and holds(judged, (0xD5, 0x5E, 0x00))
    path = matches.matches([(*images, points, points, None)], ["pair"], tmp_path / "u.png", title="Matches")
    assert holds(path, (0x00, 0x72, 0xB2)) and not holds(path, (0xD5, 0x5E, 0x00))
