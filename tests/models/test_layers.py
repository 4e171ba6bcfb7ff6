import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from dino_jax.models import layers
from dino_jax.models.layers import attend, gelu

SHAPE = (2, 7, 3, 8)


def qkv(dtype=jnp.float32, scale=1.0):
    return [scale * jax.random.normal(jax.random.key(i), SHAPE, dtype) for i in range(3)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_equals_the_function_of_jax(dtype, tolerance):
    q, k, v = qkv(dtype)
    found = attend(q, k, v)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.astype(np.float32), jax.nn.dot_product_attention(q, k, v).astype(np.float32), atol=tolerance
    )


def test_gradients_equal_those_of_the_function_of_jax():
    cotangent = jax.random.normal(jax.random.key(9), SHAPE)
    ours, theirs = (
        jax.jit(jax.grad(lambda x, f=f: (f(*x) * cotangent).sum()))(qkv())
        for f in (attend, jax.nn.dot_product_attention)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), ours, theirs)


def test_large_logits_do_not_overflow():
    q, k, v = qkv(scale=100.0)
    assert np.isfinite(attend(q, k, v)).all()


def test_equal_keys_average_the_values():
    q, k, v = qkv()
    found = attend(q, jnp.ones_like(k), v)
    np.testing.assert_allclose(found, jnp.broadcast_to(v.mean(1, keepdims=True), SHAPE), atol=1e-6)


def with_gradients(function, cotangent, *inputs):
    """Returns what a function gives and its gradients, all from one program."""

    @jax.jit
    def run(cotangent, *inputs):
        out, backward = jax.vjp(function, *inputs)
        return out, backward(cotangent)

    return run(cotangent, *inputs)


@pytest.mark.parametrize("block", [1, 3, 7, 16])
def test_blocks_of_queries_equal_all_at_once(block):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in qkv())
    cotangent = jax.random.normal(jax.random.key(9), q.shape)
    whole, whole_gradients = with_gradients(layers.attend_heads, cotangent, q, k, v)
    found, gradients = with_gradients(lambda *x: layers.attend_by_blocks(*x, block=block), cotangent, q, k, v)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    for ours, theirs in zip(gradients, whole_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_many_keys_take_blocks(monkeypatch):
    q, k, v = qkv(jnp.bfloat16)
    whole = attend(q, k, v)
    monkeypatch.setattr(layers, "MOST_WHOLE", 6)
    monkeypatch.setattr(layers, "QUERY_BLOCK", 4)
    program = jax.jit(lambda *x: attend(*x))  # a function that is not traced yet
    assert "scan" in str(jax.make_jaxpr(program)(q, k, v))
    np.testing.assert_allclose(program(q, k, v).astype(np.float32), whole.astype(np.float32), atol=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)])
def test_gelu_is_exact_with_its_gradient(dtype, tolerance):
    x = jnp.linspace(-8, 8, 1001).astype(dtype)
    exact = 0.5 * np.asarray(x, np.float64) * (1 + erf(np.asarray(x, np.float64) / np.sqrt(2)))
    assert gelu(x).dtype == dtype
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), exact, atol=tolerance)
    theirs = jax.jit(jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False))))(x.astype(jnp.float32))
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(gelu)))(x).astype(np.float32), theirs, atol=tolerance)


@pytest.mark.parametrize(("rate", "shards", "kept"), [(0.3, 1, 5), (0.3, 2, 2), (0.9, 2, 1)])
def test_stochastic_depth_runs_a_subset_of_each_shard(rate, shards, kept):
    """A branch that adds 1 shows which samples it ran on, and by how much its result was raised."""
    x, size = jnp.zeros((8, 3, 2)), 8 // shards
    seen = []

    def branch(rows):
        seen.append(rows.shape)
        return jnp.ones_like(rows)

    def add(key):
        return layers.residual_on_subset(branch, x, key, rate=rate, shards=shards)

    added = np.asarray(jax.jit(jax.vmap(add))(jax.random.split(jax.random.key(0), 200)))
    assert seen == [(shards * kept, 3, 2)]
    np.testing.assert_allclose(np.unique(added), [0, size / kept], rtol=1e-6)
    assert (added == added[..., :1, :1]).all()  # a sample is kept or skipped as a whole
    counts = (added[..., 0, 0] > 0).reshape(200, shards, size).sum(-1)
    assert (counts == kept).all()
    # Every sample is kept as often as any other: a share of kept / size, give or take four standard deviations.
    share = kept / size
    assert np.abs((added[..., 0, 0] > 0).mean(0) - share).max() < 4 * (share * (1 - share) / 200) ** 0.5


def test_stochastic_depth_gives_each_sample_its_own_update():
    x = jnp.arange(8.0)[:, None, None] * jnp.ones((8, 2, 1))
    y = layers.residual_on_subset(lambda rows: 10 * rows, x, jax.random.key(1), rate=0.5, shards=2)
    ratio = np.asarray(y[1:] / x[1:])
    assert set(np.unique(ratio.round(4))) == {1, 21}  # 1 + 10 * 4 / 2


@pytest.mark.parametrize(
    ("samples", "most", "found"),
    [(1, 1, 1), (31, 44, 31), (33, 48, 32), (89, 128, 88), (921, 1024, 928), (3686, 4096, 3712)],
)
def test_subsets_of_many_samples_are_rounded(samples, most, found):
    assert layers.aligned(samples, most=most) == found


def test_subsets_are_never_rounded_to_all_samples_nor_far():
    for most in (2, 63, 64, 271, 1024, 4096):
        for samples in range(1, most):
            rounded = layers.aligned(samples, most=most)
            assert 1 <= rounded < most and abs(rounded - samples) <= samples / 32


def test_fused_attention_leaves_out_the_tokens_that_fill_up(portable_cudnn):
    inputs = [jnp.concatenate([x, x[:, :1]], axis=1) for x in qkv()]
    cotangent = jax.random.normal(jax.random.key(9), inputs[0].shape)
    for length in (None, 7, 5):
        found, ours = with_gradients(
            lambda *x, length=length: layers.attend_fused(*x, length)[:, :length], cotangent[:, :length], *inputs
        )
        whole, theirs = with_gradients(attend, cotangent[:, :length], *(x[:, :length] for x in inputs))
        np.testing.assert_allclose(found, whole, atol=1e-6)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a[:, :length], b, atol=5e-6)
            assert not a[:, b.shape[1] :].any()
