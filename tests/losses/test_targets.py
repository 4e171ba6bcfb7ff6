import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.losses import targets
from tests.conftest import golden_names
from tests.torch_weights import assert_close

sinkhorn_knopp = jax.jit(targets.sinkhorn_knopp, static_argnames="iterations")
update_center = jax.jit(targets.update_center)


def reference_sinkhorn(logits, temperature, iterations):
    """The published algorithm in float64: prototypes to mass 1/K, samples to mass 1/B."""
    q = np.exp(np.asarray(logits, np.float64) / temperature)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
    return q * q.shape[0]


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def test_sinkhorn_by_hand():
    # exp(logits) = [[1, 1], [1, 3]]: columns to [[1/2, 1/4], [1/2, 3/4]], then rows to [[2/3, 1/3], [2/5, 3/5]].
    out = sinkhorn_knopp(jnp.log(jnp.array([[1.0, 1.0], [1.0, 3.0]])), 1.0, iterations=1)
    np.testing.assert_allclose(out, [[2 / 3, 1 / 3], [2 / 5, 3 / 5]], rtol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_sinkhorn_equals_the_published_algorithm(iterations):
    logits = normal(24, 16)
    out = sinkhorn_knopp(logits, 0.1, iterations=iterations)
    np.testing.assert_allclose(out, reference_sinkhorn(logits, 0.1, iterations), rtol=2e-5, atol=1e-7)


def test_sinkhorn_uses_all_prototypes_equally():
    out = sinkhorn_knopp(normal(32, 8), 1.0, iterations=30)
    np.testing.assert_allclose(out.sum(axis=1), np.ones(32), rtol=1e-6)
    np.testing.assert_allclose(out.sum(axis=0), np.full(8, 32 / 8), rtol=1e-4)


@pytest.mark.parametrize("scale", [10.0, 300.0])
def test_sinkhorn_is_exact_where_direct_exponentials_overflow(scale):
    logits = normal(12, 20, scale=scale)
    assert np.abs(logits / 0.05).max() > 88  # the largest exponent of float32
    scores = logits.astype(np.float64) / 0.05
    expected = log_domain_sinkhorn(scores, 3)
    out = sinkhorn_knopp(logits, 0.05, iterations=3)
    # The scores themselves are rounded at 6e-8 of their size, which the exponential turns into a relative error.
    np.testing.assert_allclose(out, expected, rtol=2e-7 * np.abs(scores).max(), atol=1e-6)


def log_domain_sinkhorn(scores, iterations):
    for _ in range(iterations):
        scores = scores - np.logaddexp.reduce(scores, axis=0, keepdims=True)
        scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return np.exp(scores)


def test_sinkhorn_with_a_dead_prototype_and_an_outlying_sample():
    logits = normal(6, 5)
    logits[:, 2] -= 1000.0  # underflows for all samples
    logits[3] += 500.0  # dwarfs all other samples
    out = sinkhorn_knopp(logits, 1.0, iterations=3)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, log_domain_sinkhorn(logits.astype(np.float64), 3), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(out.sum(axis=1), np.ones(6), rtol=1e-6)


@pytest.mark.parametrize("garbage", [0.0, 1e4, np.nan, np.inf])
def test_sinkhorn_ignores_padding(garbage):
    logits = normal(10, 6)
    weights = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1, 0], np.float32)
    padded = np.where(weights[:, None] > 0, logits, garbage)
    out = np.asarray(sinkhorn_knopp(padded, 0.2, iterations=3, weights=weights))
    # 1.3e-6 was measured: the sums have other terms beside each other.
    np.testing.assert_allclose(out[weights > 0], sinkhorn_knopp(logits[weights > 0], 0.2, iterations=3), rtol=3e-6)
    assert (out[weights == 0] == 0).all()
    assert (np.asarray(sinkhorn_knopp(padded, 0.2, iterations=3, weights=np.zeros(10))) == 0).all()


def test_sinkhorn_shows_a_nan():
    logits = normal(4, 3)
    logits[1, 1] = np.nan
    assert np.isnan(sinkhorn_knopp(logits, 1.0, iterations=3)).any()


def test_sinkhorn_needs_an_iteration():
    with pytest.raises(ValueError, match="at least 1"):
        targets.sinkhorn_knopp(normal(4, 3), 1.0, iterations=0)


def test_targets_stop_the_gradient():
    logits, center = normal(4, 3), jnp.zeros(3)
    for function in (
        lambda x: targets.sinkhorn_knopp(x, 0.5, iterations=3),
        lambda x: targets.softmax_center(x, center, 0.5),
        lambda x: targets.update_center(center, x, momentum=0.9),
    ):
        gradient = jax.grad(lambda x, function=function: jnp.sum(function(x) ** 2))(logits)
        assert (np.asarray(gradient) == 0).all()


def test_center_by_hand():
    logits = np.array([[1.0, 3.0], [3.0, 5.0], [np.nan, np.nan]], np.float32)
    center = update_center(jnp.array([1.0, 0.0]), logits, momentum=0.9, weights=np.array([1, 1, 0]))
    np.testing.assert_allclose(center, [0.9 * 1 + 0.1 * 2, 0.1 * 4], rtol=1e-6)
    kept = update_center(jnp.array([1.0, 0.0]), logits, momentum=0.9, weights=np.zeros(3))
    np.testing.assert_allclose(kept, [1.0, 0.0])
    probs = jax.jit(targets.softmax_center)(np.array([[0.5, 0.5]], np.float32), jnp.array([0.5, 0.5 - np.log(3)]), 1.0)
    np.testing.assert_allclose(probs, [[0.25, 0.75]], rtol=1e-6)


@pytest.mark.golden
def test_sinkhorn_golden(golden):
    file = golden("v3_dinoloss.npz")
    recorded = file.under("out/sinkhorn_iters")
    assert recorded
    for iterations, expected in recorded.items():
        out = sinkhorn_knopp(file["in/teacher_logits"], float(file["in/teacher_temp"]), iterations=int(iterations))
        assert_close(out, expected, relative=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v[23]_ibot.npz"))
def test_sinkhorn_golden_of_masked_patches(golden, name):
    """Alone, with another number of samples given, which cancels, and with rows of zeros, which take part."""
    file = golden(name)
    logits, temperature = file["in/teacher_logits"], float(file["in/teacher_temp"])
    for case, expected in file.under("out/sinkhorn").items():
        padded = np.pad(logits, ((0, len(expected) - len(logits)), (0, 0)))
        assert_close(sinkhorn_knopp(padded, temperature, iterations=3), expected, relative=1e-6, name=case)
    padded = np.pad(logits, ((0, 3), (0, 0)))
    weighted = sinkhorn_knopp(padded, temperature, iterations=3, weights=np.arange(len(padded)) < len(logits))
    assert_close(weighted[: len(logits)], file["out/sinkhorn"], relative=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v3_dist_world*.npz"))
@pytest.mark.parametrize("kind", ["sk", "ibot_sk"])
def test_sinkhorn_golden_over_ranks(golden, name, kind):
    file = golden(name)
    ranks = range(file.config["world"])
    logits = np.concatenate([file[f"rank{rank}/{kind}/in/teacher_logits"] for rank in ranks])
    expected = np.concatenate([file[f"rank{rank}/{kind}/out"] for rank in ranks])
    assert_close(sinkhorn_knopp(logits, file.config["teacher_temp"], iterations=3), expected, relative=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v[23]*_softmax_center.npz"))
def test_center_golden(golden, name):
    file = golden(name)
    center = np.zeros(file.config["K"], np.float32)
    calls = len(file.under("out/"))
    for i in range(calls):  # the update of call i is applied at call i + 1
        assert_close(center, file[f"center/used_{i}"].ravel(), relative=1e-6)
        logits = file[f"in/{i}/teacher"]
        probs = jax.jit(targets.softmax_center)(logits, center, file.config["teacher_temp"])
        assert_close(probs, file[f"out/{i}/probs"], relative=2e-6)
        center = targets.update_center(center, logits, momentum=file.config["center_momentum"])
    assert_close(center, file[f"center/after_{calls}_updates"].ravel(), relative=1e-6)
