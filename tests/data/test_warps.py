import numpy as np

from dino_jax.data.warps import homography, moved, random_homography, warp


def blobs(places, *, size=(120, 180)):
    """An image with a white disk at each place (shares of width and height)."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    image = np.zeros((*size, 3), np.uint8)
    for x, y in places:
        image[(columns - x * size[1]) ** 2 + (rows - y * size[0]) ** 2 < 16] = 255
    return image


def test_points_move_as_the_image_does():
    place = np.array([[0.55, 0.45]])
    for seed in range(6):
        copy, matrix = warp(blobs(place), random=np.random.default_rng(seed))
        bright = np.argwhere(copy[..., 0] > copy[..., 0].min() + 100)
        center = (bright.mean(axis=0) + 0.5)[::-1] / (180, 120)
        np.testing.assert_allclose(center, moved(place, matrix)[0], atol=0.006)


def test_homography_takes_four_points_to_four_others():
    random = np.random.default_rng(0)
    source, target = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]]), random.random((4, 2))
    np.testing.assert_allclose(moved(source, homography(source, target)), target, atol=1e-9)


def test_distortions_are_moderate_and_repeatable():
    points = np.array([[0.5, 0.5]])
    for seed in range(50):
        first, again = (random_homography(1.5, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert abs(moved(points, first) - 0.5).max() < 0.3
