import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.losses.contrastive import contrastive_loss
from tests.conftest import golden_names
from tests.torch_weights import assert_close

value_and_gradients = jax.jit(jax.value_and_grad(contrastive_loss, argnums=(0, 1, 2)))


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(images, texts, log_scale):
    """The loss in float64, one question at a time."""
    logits = np.exp(log_scale) * images.astype(np.float64) @ texts.astype(np.float64).T
    answers = [np.log(np.exp(row[i]) / np.exp(row).sum()) for s in (logits, logits.T) for i, row in enumerate(s)]
    return -np.mean(answers)


def test_by_hand():
    # Cosines [[1, 0], [0, 1]] at scale log(3): each question has the odds 3 : 1.
    value, _ = value_and_gradients(jnp.eye(2), jnp.eye(2), jnp.log(jnp.log(3.0)))
    np.testing.assert_allclose(value, np.log(4 / 3), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_against_numpy(scale):
    images, texts = unit(7, 5), unit(7, 5, seed=1)
    value, _ = value_and_gradients(images, texts, jnp.log(scale))
    np.testing.assert_allclose(value, reference(images, texts, np.log(scale)), rtol=1e-5)


def test_symmetric_and_blind_to_the_order_of_pairs():
    images, texts, order = unit(6, 4), unit(6, 4, seed=1), np.array([3, 1, 5, 0, 2, 4])
    value, _ = value_and_gradients(images, texts, jnp.float32(1.0))
    for swapped in ((texts, images), (images[order], texts[order])):
        np.testing.assert_allclose(value_and_gradients(*swapped, jnp.float32(1.0))[0], value, rtol=1e-6)


def test_a_batch_that_all_looks_alike_costs_a_blind_guess():
    same = jnp.tile(unit(1, 4), (8, 1))
    value, (_, _, to_scale) = value_and_gradients(same, same, jnp.float32(2.0))
    np.testing.assert_allclose(value, np.log(8), rtol=1e-6)
    np.testing.assert_allclose(to_scale, 0, atol=1e-5)


def test_unpaired():
    with pytest.raises(ValueError, match="not pairs"):
        contrastive_loss(jnp.ones((3, 2)), jnp.ones((4, 2)), jnp.float32(1.0))


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v3_dist_world*.npz"))
def test_golden_over_ranks(golden, name):
    """The mean over ranks is the global loss; a rank's gradient for its features is that of the sum over ranks."""
    file = golden(name)
    ranks = [file.under(f"rank{rank}/clip/") for rank in range(file.config["world"])]
    images, texts = (np.concatenate([rank[f"in/{kind}"] for rank in ranks]) for kind in ("image", "text"))
    value, gradients = value_and_gradients(images, texts, ranks[0]["in/log_logit_scale"])
    assert_close(value, np.mean([rank["out/loss"] for rank in ranks]), relative=1e-6)
    for gradient, kind in zip(gradients, ("image", "text"), strict=False):
        expected = np.concatenate([rank[f"grad_input/{kind}"] for rank in ranks])
        assert_close(len(ranks) * gradient, expected, relative=5e-6, name=kind)
    to_scale = np.mean([rank["grad_input/log_logit_scale"] for rank in ranks], axis=0)
    assert_close(gradients[2], to_scale, relative=5e-6, name="log_logit_scale")
