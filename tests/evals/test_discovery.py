import numpy as np
import pytest
from scipy import linalg

from dino_jax.evals import discovery


def planted(box, *, grid=(10, 12), dim=8, seed=0):
    """Features of one kind in a box (rows, columns) and of another outside, and the mask of the box."""
    random = np.random.default_rng(seed)
    mask = np.zeros(grid, bool)
    mask[box] = True
    kinds = linalg.orth(random.normal(size=(dim, 2))).T
    return kinds[mask.astype(int)] + 0.02 * random.normal(size=(*grid, dim)), mask


@pytest.mark.parametrize("seed", range(4))
def test_second_eigenvector_is_that_of_the_generalised_problem(seed):
    random = np.random.default_rng(seed)
    weights = random.uniform(0.01, 1, (40, 40))
    weights += weights.T
    degrees = np.diag(weights.sum(axis=1))
    _, vectors = linalg.eigh(degrees - weights, degrees)
    found = discovery.second_eigenvector(weights)
    np.testing.assert_allclose(found * np.sign(found @ vectors[:, 1]), vectors[:, 1], atol=1e-9)


def cut_as_published(patches):
    """Returns the object's mask and the second eigenvector, `(rows, columns)`: arXiv 2202.11539, section 3.

    None where they are not unique.
    """
    rows, columns, dim = patches.shape
    flat = patches.reshape(-1, dim)
    lengths = np.linalg.norm(flat, axis=1)
    edges = np.where(flat @ flat.T / np.outer(lengths, lengths) >= 0.2, 1.0, 1e-5)
    degrees = np.diag(edges.sum(axis=1))
    values, vectors = linalg.eigh(degrees - edges, degrees)
    vector = vectors[:, 1].reshape(rows, columns)
    *_, second, first = np.sort(abs(vector), axis=None)
    if values[2] - values[1] < 1e-9 or first - second < 1e-9:
        return None
    above = vector > vector.mean()
    seed = divmod(int(abs(vector).argmax()), columns)
    mask = np.zeros((rows, columns), bool)
    reached = [seed]
    while reached:
        row, column = reached.pop()
        if 0 <= row < rows and 0 <= column < columns and above[row, column] == above[seed] and not mask[row, column]:
            mask[row, column] = True
            reached += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return mask, vector


def test_objects_of_random_graphs_are_those_of_the_paper():
    compared = 0
    for seed in range(20):
        patches = np.random.default_rng(seed).normal(size=(6, 7, 3 + seed % 6))
        expected = cut_as_published(patches)
        if expected is not None:
            found = discovery.token_cut(patches)
            np.testing.assert_array_equal(found.mask, expected[0])
            np.testing.assert_allclose(abs(found.eigenvector), abs(expected[1]), atol=1e-9)
            compared += 1
    assert compared >= 15


@pytest.mark.parametrize("box", [np.s_[2:5, 3:8], np.s_[0:4, 0:4], np.s_[6:10, 5:12]])
def test_planted_objects_are_found(box):
    features, mask = planted(box)
    found = discovery.token_cut(features)
    np.testing.assert_array_equal(found.mask, mask)
    true = discovery.box_of(mask.repeat(16, 0).repeat(16, 1))
    assert found.box((160, 192)) == true
    assert discovery.corloc([found.box((160, 192))], [[true]]) == 1
    assert discovery.mask_iou(mask.repeat(16, 0).repeat(16, 1), found.mask) == 1


def test_only_the_connected_part_of_the_seed_is_the_object():
    features, mask = planted(np.s_[2:6, 2:6])
    features[8, 10] = features[3, 3]  # one patch elsewhere looks like the object
    found = discovery.token_cut(features)
    assert found.foreground.sum() == mask.sum() + 1
    assert found.mask.sum() in (mask.sum(), 1)


def test_features_alike_everywhere_and_noise_do_not_fail():
    for features in (np.ones((4, 5, 3)), np.random.default_rng(0).normal(size=(4, 5, 3)), np.zeros((4, 5, 3))):
        found = discovery.token_cut(features)
        assert found.mask.any() and np.isfinite(found.eigenvector).all()


def test_noise_scores_by_chance():
    random = np.random.default_rng(0)
    boxes = [discovery.token_cut(random.normal(size=(8, 8, 16))).box((64, 64)) for _ in range(40)]
    assert discovery.corloc(boxes, [[(8.0, 8.0, 24.0, 24.0)]] * 40) < 0.2


def test_box_iou_and_corloc_by_hand():
    assert discovery.box_iou((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert discovery.box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    found = [(0, 0, 4, 4), (0, 0, 4, 4)]
    assert discovery.corloc(found, [[(9, 9, 10, 10), (0, 0, 4, 2)], [(0, 0, 4, 1)]]) == 0.5  # IoU 1/2 is a hit


def test_box_and_mask_by_hand():
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2] = True
    assert discovery.box_of(mask) == (2, 1, 3, 3)
    assert discovery.mask_iou(mask, np.array([[False, True, False]] * 2)) == 2 / 8


@pytest.mark.parametrize(
    "features, message",
    [(np.ones((1, 1, 3)), "cannot be cut"), (np.full((2, 2, 3), np.inf), "not all finite")],
)
def test_bad_input_is_one_line(features, message):
    with pytest.raises(ValueError, match=message):
        discovery.token_cut(features)
    with pytest.raises(ValueError, match="threshold nan must lie between -1 and 1"):
        discovery.token_cut(features, threshold=np.nan)
    with pytest.raises(ValueError, match="no true box"):
        discovery.corloc([(0, 0, 1, 1)], [[]])
    with pytest.raises(ValueError, match="empty mask"):
        discovery.box_of(np.zeros((2, 2), bool))
