"""The generalised mean; the other outputs are compared with the model itself in test_extraction."""

import numpy as np
import pytest

from dino_jax.feature_outputs import generalised_mean


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e12])
def test_generalised_mean(scale):
    patches = scale * np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = (np.maximum(patches, 1e-6) ** 4).mean((1, 2)) ** 0.25  # float64, where no power overflows
    np.testing.assert_allclose(generalised_mean(np.float32(patches)), expected, rtol=1e-6)


def test_values_that_are_not_positive_count_next_to_nothing():
    patches = np.zeros((1, 2, 2, 2), np.float32)
    patches[..., 1] = -5
    np.testing.assert_allclose(generalised_mean(patches), 1e-6, rtol=1e-6)
