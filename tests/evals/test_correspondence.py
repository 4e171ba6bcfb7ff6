import jax
import numpy as np
import pytest

from dino_jax.evals import correspondence


def features(grid=(6, 8), dim=16, seed=0):
    return np.random.default_rng(seed).normal(size=(*grid, dim)).astype(np.float32)


def test_patches_find_themselves_after_a_shift():
    source = features()
    target = np.roll(source, (1, 2), axis=(0, 1))
    points = correspondence.centers((6, 8))
    found, cosines = correspondence.match_points(source, target, points, finer=1)
    expected = np.add(points, [2 / 8, 1 / 6]) % 1
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    assert correspondence.pck(found * 100, expected * 100, size=100, alpha=0.01) == 1


def test_patches_find_themselves_after_a_flip():
    source = features()
    kept, where, cosines = correspondence.mutual_matches(source, source[:, ::-1])
    assert len(kept) == 48 and (np.diff(cosines) <= 0).all()
    np.testing.assert_allclose(where, kept * [-1, 1] + [1, 0], atol=1e-6)


def test_finer_places_lie_between_patches():
    """Smooth features shifted by half a patch are found to a quarter of a patch."""
    angles = np.random.default_rng(0).normal(size=(32, 2)) * 3

    def smooth(shift):
        places = correspondence.centers((8, 8)).reshape(8, 8, 2) - [shift, 0]
        return np.concatenate([np.cos(places @ angles.T), np.sin(places @ angles.T)], axis=-1)

    points = np.array([[0.4, 0.5], [0.3, 0.7], [0.6, 0.2]])
    found, _ = correspondence.match_points(smooth(0), smooth(0.5 / 8), points)
    np.testing.assert_allclose(found, np.add(points, [0.5 / 8, 0]), atol=0.25 / 8)


def test_noise_finds_by_chance():
    """All places are as likely: the chance of a point is the share of them that count as right."""
    points = correspondence.centers((20, 20))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    pairs = [(features((20, 20), seed=seed), features((20, 20), seed=seed + 1)) for seed in (0, 2, 4)]
    found = np.concatenate([correspondence.match_points(*pair, points, finer=1)[0] for pair in pairs])
    for alpha in (0.22, 0.42):  # no distance on the grid is as long
        share = correspondence.pck(found, np.tile(points, (3, 1)), size=1.0, alpha=alpha)
        assert share == pytest.approx(np.mean(distances <= alpha), abs=0.03)  # two deviations of 1200 coins


def test_only_mutual_neighbours_match():
    source = np.array([[[1.0, 0.0], [0.9, 0.1]]])
    target = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    kept, where, _ = correspondence.mutual_matches(source, target)
    np.testing.assert_allclose(kept, [[0.25, 0.5]])
    np.testing.assert_allclose(where, [[0.25, 0.5]])


def test_sampling_is_that_of_torch():
    torch = pytest.importorskip("torch")
    grid, points = features(), np.random.default_rng(1).random((20, 2)).astype(np.float32)
    expected = torch.nn.functional.grid_sample(
        torch.tensor(grid).permute(2, 0, 1)[None],
        torch.tensor(2 * points - 1)[None, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    found = jax.jit(correspondence._sample)(grid, points)
    np.testing.assert_allclose(found, expected[0, :, 0].T.numpy(), atol=1e-5)


def test_pck_by_hand():
    found, truth = np.array([[0.0, 0], [3, 4], [10, 0]]), np.zeros((3, 2))
    assert correspondence.pck(found, truth, size=50, alpha=0.1) == pytest.approx(2 / 3)
    assert correspondence.pck(found, truth, size=np.array([1, 10, 100]), alpha=0.1) == pytest.approx(2 / 3)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.array([[0.5, 1.2]]), np.array([0.5, 0.5])])
def test_bad_points_are_one_line(points):
    with pytest.raises(ValueError, match="shares of width and height"):
        correspondence.match_points(features(), features(), points)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="16 and 4 dimensions"):
        correspondence.match_points(features(), features(dim=4), np.array([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="one or more of each"):
        correspondence.pck(np.zeros((0, 2)), np.zeros((0, 2)), size=1.0, alpha=0.1)
