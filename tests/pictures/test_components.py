import numpy as np
import pytest
from sklearn.decomposition import PCA

from dino_jax.pictures import components
from dino_jax.pictures.components import shared_components

SCALES = np.array([9.0, 5.0, 3.0, 0.1, 0.1, 0.1, 0.1, 0.1])


def grids(*shapes):
    rng, turn = np.random.default_rng(0), np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]
    return [(rng.standard_normal((*shape, 8)) * SCALES) @ turn + 1.0 for shape in shapes]


def scene(rows=12, columns=16, shift=0):
    """An object in the middle, of two halves, on a background that lies elsewhere in every direction."""
    grid = 0.05 * np.random.default_rng(shift).standard_normal((rows, columns, 8))
    inside = np.zeros((rows, columns), bool)
    inside[3:9, 4 + shift : 11 + shift] = True
    grid[~inside, 0] += 5
    grid[inside, 0] -= 5
    grid[3:6, 4 + shift : 11 + shift, 1] += 2
    grid[6:9, 4 + shift : 11 + shift, 1] -= 2
    return grid, inside


def test_basis_is_that_of_all_images_together():
    images = grids((5, 6), (7, 4))
    found = shared_components(images)
    expected = PCA(3).fit(np.concatenate([grid.reshape(-1, 8) for grid in images]))
    np.testing.assert_allclose(found.mean, expected.mean_)
    np.testing.assert_allclose(np.abs(found.basis.T @ expected.components_.T), np.eye(3), atol=1e-6)


def test_signs_do_not_depend_on_the_solver_or_the_order():
    images = grids((5, 6), (7, 4), (20, 20))
    first, second = shared_components(images), shared_components(images[::-1])
    np.testing.assert_allclose(first.basis, second.basis, atol=1e-9)
    assert (first.basis[np.abs(first.basis).argmax(0), range(3)] > 0).all()


@pytest.mark.parametrize("foreground", [False, True])
def test_of_very_many_patches_some_are_taken(monkeypatch, foreground):
    images = [scene(shift=shift)[0] for shift in (0, 1, 2, 3)]
    whole = shared_components(images, foreground=foreground)
    monkeypatch.setattr(components, "MOST_PATCHES", 300)  # of 768
    part = shared_components(images, foreground=foreground)
    assert (np.abs((whole.basis * part.basis).sum(0))[:1] > 0.99).all()
    assert (whole.foreground(images[0]) == part.foreground(images[0])).all()


def test_colours_span_the_range_over_the_whole_set():
    images = grids((9, 9), (9, 12))
    found = shared_components(images)
    colors = np.concatenate([found.colors(grid).reshape(-1, 3) for grid in images])
    assert colors.min() == 0
    assert colors.max() == 1
    np.testing.assert_allclose((colors == 0).mean(0), 0.01, atol=0.012)
    assert found.foreground(images[0]).all()


def test_equal_features_have_equal_colours_in_all_images():
    images = grids((5, 6), (7, 4))
    images[1][2, 3] = images[0][1, 1]
    found = shared_components(images)
    np.testing.assert_array_equal(found.colors(images[0])[1, 1], found.colors(images[1])[2, 3])


@pytest.mark.parametrize("sign", [1, -1])
def test_foreground_is_the_object_away_from_the_border(sign):
    (first, inside), (second, inside_second) = scene(), scene(shift=2)
    found = shared_components([sign * first, sign * second], foreground=True)
    np.testing.assert_array_equal(found.foreground(sign * first), inside)
    np.testing.assert_array_equal(found.foreground(sign * second), inside_second)
    colors = found.colors(sign * first)[..., 0]
    assert abs(colors[3:6, 4:11].mean() - colors[6:9, 4:11].mean()) > 0.8, "the halves differ most inside the object"


def test_few_patches_or_directions():
    one = shared_components([np.ones((1, 1, 8))], foreground=True)
    assert one.colors(np.ones((1, 1, 8))).shape == (1, 1, 3)
    flat = shared_components([np.random.default_rng(0).standard_normal((4, 4, 2))])
    assert (flat.basis[:, 2] == 0).all()


def test_bad_input():
    with pytest.raises(ValueError, match="at least one image"):
        shared_components([])
    with pytest.raises(ValueError, match="one width"):
        shared_components([np.ones((2, 2, 3)), np.ones((2, 2, 4))])
    with pytest.raises(ValueError, match="not all finite"):
        shared_components([np.full((2, 2, 3), np.nan)])
