import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.special import gamma, iv

from dino_jax.evals import quality


def test_alignment_by_hand():
    x = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert quality.alignment(x, 3 * x) == pytest.approx(0, abs=1e-6)
    assert quality.alignment(x, x[::-1]) == pytest.approx(2)
    assert quality.alignment(x, -x) == pytest.approx(4)


@pytest.mark.parametrize("block", [7, 1024])
def test_uniformity_equals_scipy(block):
    features = np.random.default_rng(0).normal(size=(50, 5))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.log(np.mean(np.exp(-2 * pdist(unit, "sqeuclidean"))))
    assert quality.uniformity(features, block=block) == pytest.approx(expected, abs=1e-5)


def test_points_spread_over_the_sphere_have_the_known_uniformity_and_full_rank():
    """E exp(4 cos) is that of a von Mises-Fisher density of concentration 4: a Bessel function."""
    noise = np.random.default_rng(0).normal(size=(2000, 16))
    expected = np.log(gamma(8) * (2 / 4) ** 7 * iv(7, 4)) - 4
    assert expected == pytest.approx(-3.5130, abs=1e-4)
    assert quality.uniformity(noise) == pytest.approx(expected, abs=0.02)
    assert 15.9 < quality.rankme(noise) <= 16


def test_uniformity_of_planted_features():
    assert quality.uniformity(np.ones((40, 8))) == pytest.approx(0, abs=1e-6)
    # Orthogonal features are at squared distance 2 from each other.
    assert quality.uniformity(np.eye(30)) == pytest.approx(-4, abs=1e-5)
    with pytest.raises(ValueError, match="1 image has no pair"):
        quality.uniformity(np.ones((1, 8)))


def test_neighbour_cosine_by_hand():
    """A board of two orthogonal features: rows alike, columns alternating."""
    stripes = np.zeros((1, 3, 4, 2))
    stripes[0, :, ::2, 0] = stripes[0, :, 1::2, 1] = 1
    # 9 pairs across with cosine 0, 8 pairs down with cosine 1.
    assert quality.neighbour_cosine(stripes) == pytest.approx(8 / 17)
    assert quality.neighbour_cosine(np.ones((2, 3, 3, 4))) == pytest.approx(1)
    assert quality.neighbour_cosine(np.ones((2, 1, 1, 4))) == 0


def test_smooth_maps_are_more_consistent_than_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 8, 8, 16))
    smooth = np.repeat(np.repeat(noise[:, ::4, ::4], 4, axis=1), 4, axis=2)
    assert quality.neighbour_cosine(smooth) > 0.8
    assert quality.neighbour_cosine(noise) == pytest.approx(0, abs=0.1)


def test_spectrum_and_cosines():
    np.testing.assert_allclose(quality.spectrum(np.diag([3.0, 1.0])), [0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(quality.cosines(np.array([[2.0, 0]]), np.array([[1.0, 1.0]])), [2**-0.5], rtol=1e-6)
