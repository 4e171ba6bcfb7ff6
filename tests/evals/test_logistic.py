import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dino_jax.evals import logistic


@pytest.fixture(scope="module")
def clusters():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    return (rng.normal(size=(4, 6))[labels] + rng.normal(size=(300, 6))).astype(np.float32), labels


@pytest.mark.parametrize("block", [8192, 128])
def test_equals_scikit_learn_for_every_strength(clusters, block, monkeypatch):
    monkeypatch.setattr(logistic, "BLOCK", block)
    features, labels = clusters
    strengths = (0.01, 1.0, 100.0)
    params = logistic.fit(features, labels, classes=4, strengths=strengths, most_steps=500, tolerance=1e-6)
    for index, strength in enumerate(strengths):
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=2000).fit(features, labels)
        np.testing.assert_allclose(params["kernel"][index].T, theirs.coef_, atol=5e-3)
        # A sample between two classes may go either way.
        assert np.mean(logistic.predict(params, features)[index] == theirs.predict(features)) > 0.99


def test_planted_answers():
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    right = [np.eye(5, 7)[y] + 0.05 * rng.normal(size=(400, 7)) for y in (labels, test_labels)]
    blind = [rng.normal(size=(400, 7)) for _ in range(2)]
    for (train, test), score in ((right, 1.0), (blind, 0.2)):
        train, test = logistic.standardise(train, test)
        params = logistic.fit(train, labels, classes=5, strengths=(1.0,))
        assert np.mean(logistic.predict(params, test)[0] == test_labels) == pytest.approx(score, abs=0.08 * (score < 1))


def test_memory_does_not_grow_with_the_strengths():
    """The features are shared: six strengths need no copies of them."""
    x, y = jax.ShapeDtypeStruct((4, 8192, 256), jnp.float32), jax.ShapeDtypeStruct((4, 8192), jnp.int32)
    weights, penalties = jax.ShapeDtypeStruct(y.shape, jnp.float32), jax.ShapeDtypeStruct((6,), jnp.float32)
    settings = {"classes": 5, "most_steps": 10, "tolerance": 1e-4}
    program = logistic._minimise.lower(x, y, weights, penalties, **settings).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * x.size / 2


def test_standardise_by_one_number():
    train, other = logistic.standardise(np.array([[0.0, 10.0], [2.0, 30.0]]), np.array([[1.0, 20.0]]))
    np.testing.assert_allclose(other, [[0, 0]])
    assert train.std() == pytest.approx(1)
    np.testing.assert_allclose(train[1] / train[1, 0], [1, 10], rtol=1e-6)


def test_wrong_input_is_refused(clusters):
    features, labels = clusters
    with pytest.raises(ValueError, match="label 3 is out of range, there are 3 classes"):
        logistic.fit(features, labels, classes=3)
    with pytest.raises(ValueError, match="label -1 is out of range"):
        logistic.fit(features, labels - 1, classes=4)
    with pytest.raises(ValueError, match="all labels are of one class"):
        logistic.fit(features, 0 * labels, classes=4)
    with pytest.raises(ValueError, match="not all finite"):
        logistic.fit(features * np.nan, labels, classes=4)
    with pytest.raises(ValueError, match=r"must be \(n, dim\)"):
        logistic.fit(features[1:], labels, classes=4)
    with pytest.raises(ValueError, match="must be above 0"):
        logistic.fit(features, labels, classes=4, strengths=(0.0,))
