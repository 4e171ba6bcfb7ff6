import numpy as np
import pytest

from dino_jax.evals.neighbours import neighbours


@pytest.mark.parametrize(("count", "k", "chunk"), [(997, 5, 1000), (997, 60, 100), (64, 64, 1000), (500, 3, 7)])
def test_group_maxima_find_the_exact_neighbours(count, k, chunk):
    """Beside a stable sort of all similarities, where most of them tie."""
    rng = np.random.default_rng(count + k)
    # Rows of 16 signs have norm 4, so every cosine is an exact multiple of 1/8.
    rows = rng.choice([-1.0, 1.0], (count + 33, 16))
    train, queries = rows[:count], rows[count:]
    cosines, indices = neighbours(train, queries, k=k, chunk=chunk, block=10)
    similarities = queries @ train.T / 16
    expected = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(cosines, np.take_along_axis(similarities, expected, axis=1))
    assert indices.dtype == np.int32
