"""The prototype head against the reference's outputs and gradients, a case by hand, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.models import PrototypeHead
from tests.conftest import golden_names
from tests.torch_weights import assert_close, assert_trees_close, tree


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v[123]head_*.npz"))
def test_forward_and_gradients(golden, name):
    g = golden(name)
    gain = {"v1": "frozen" if g.config.get("norm_last_layer") else "trained", "v2": "trained", "v3": "none"}[name[:2]]
    assert g.get("info/weight_g_trainable", False) == (gain == "trained")
    head = PrototypeHead(
        prototypes=g.config["out_dim"],
        hidden=g.config["hidden_dim"],
        bottleneck=g.config["bottleneck_dim"],
        mlp_layers=g.config["nlayers"],
        gain=gain,
    )
    # The names of a head's parameters stand below the head's own.
    params = tree({f"head.{name}": array for name, array in g.under("param/").items()})["head"]

    @jax.jit
    def scalar(params, x):
        logits = head.apply({"params": params}, x)
        return jnp.sum(logits * g["in/cotangent"]), logits

    differentiate = jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)
    (_, logits), (grads, input_grad) = differentiate(params, g["in/x"])
    # 6e-7 of the largest entry was the most in 45 heads, and 4.5e-6 of gradients, in one of seven narrow layers.
    assert_close(logits, g["out/logits"], relative=3e-6, name="logits")
    # Prototypes along the axes show what is scored.
    axes = params | {"prototypes": {"kernel": jnp.eye(g.config["bottleneck_dim"])}}
    bottleneck = head.clone(prototypes=g.config["bottleneck_dim"], gain="none").apply({"params": axes}, g["in/x"])
    assert_close(bottleneck, g["out/bottleneck_normalized"], relative=3e-6, name="bottleneck")
    expected = tree({f"head.{name}": array for name, array in g.under("grad/").items()})["head"]
    if gain == "frozen":  # it has no gradient there
        expected["prototypes"]["gain"] = np.zeros(g.config["out_dim"])
    assert_trees_close(jax.tree.map(np.asarray, grads), expected, relative=2e-5)
    assert_close(input_grad, g["grad_input/x"], relative=2e-5, name="input gradient")


def test_by_hand():
    """One linear layer (3, 4) is normalised to (0.6, 0.8) and scored against three prototypes."""
    head = PrototypeHead(prototypes=3, hidden=1, bottleneck=2, mlp_layers=1)
    params = {
        "mlp_0": {"kernel": jnp.array([[3.0, 0.0], [0.0, 2.0]]), "bias": jnp.array([0.0, 2.0])},
        "prototypes": {"kernel": jnp.array([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]])},
    }
    logits = head.apply({"params": params}, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(logits, [0.6, 0.8, 7.0], rtol=1e-6)


def test_weight_normalised_by_hand():
    """Only the direction (0.6, 0.8) of a prototype (3, 4) counts, times its gain."""
    params = {
        "mlp_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
        "prototypes": {"kernel": jnp.array([[3.0, 0.0], [4.0, -2.0]]), "gain": jnp.array([1.0, 0.5])},
    }
    trained, frozen = (
        PrototypeHead(prototypes=2, hidden=1, bottleneck=2, mlp_layers=1, gain=gain) for gain in ("trained", "frozen")
    )

    def score(params, head):
        return head.apply({"params": params}, jnp.array([0.0, 7.0]))

    np.testing.assert_allclose(score(params, trained), [0.8, -0.5], rtol=1e-6)
    np.testing.assert_array_equal(score(params, frozen), score(params, trained))
    grads = {
        head.gain: jax.grad(lambda p, h=head: score(p, h).sum())(params)["prototypes"] for head in (trained, frozen)
    }
    np.testing.assert_allclose(grads["trained"]["gain"], [0.8, -1.0], rtol=1e-6)
    np.testing.assert_array_equal(grads["frozen"]["gain"], 0)
    np.testing.assert_array_equal(grads["frozen"]["kernel"], grads["trained"]["kernel"])
    # Lengthening a prototype changes nothing, so its gradient is orthogonal to it.
    np.testing.assert_allclose((grads["trained"]["kernel"] * params["prototypes"]["kernel"]).sum(0), 0, atol=1e-6)


def test_weight_normalised_initialisation():
    """Gains begin at 1, and prototypes at PyTorch's default: uniform within 1 / sqrt(bottleneck)."""
    head = PrototypeHead(prototypes=400, hidden=8, bottleneck=16, gain="frozen")
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 4)))["params"]["prototypes"]
    np.testing.assert_array_equal(params["gain"], np.ones(400))
    assert np.abs(params["kernel"]).max() == pytest.approx(0.25, rel=0.01)
    assert params["kernel"].std() == pytest.approx(0.25 / 3**0.5, rel=0.03)


def test_an_unknown_gain_is_refused():
    with pytest.raises(ValueError, match="gain = 'fixed' is not one of 'none', 'frozen', 'trained'"):
        PrototypeHead(prototypes=2, hidden=2, bottleneck=2, gain="fixed").init(jax.random.key(0), jnp.zeros((1, 4)))


@pytest.fixture(scope="module")
def small():
    head = PrototypeHead(prototypes=24, hidden=16, bottleneck=8)
    x = jax.random.normal(jax.random.key(0), (2, 5, 12))
    return head, jax.jit(head.init)(jax.random.key(1), x)["params"], x


def test_initialisation_is_normal_without_bias(small):
    _, params, _ = small
    assert {name: set(layer) for name, layer in params.items()} == {
        "mlp_0": {"kernel", "bias"},
        "mlp_1": {"kernel", "bias"},
        "mlp_2": {"kernel", "bias"},
        "prototypes": {"kernel"},
    }
    assert not any(np.any(layer["bias"]) for layer in params.values() if "bias" in layer)
    kernels = np.concatenate([np.ravel(layer["kernel"]) for layer in params.values()])
    assert kernels.std() == pytest.approx(0.02, rel=0.1)


def test_scores_do_not_depend_on_the_length_of_the_bottleneck(small):
    head, params, x = small
    longer = params | {"mlp_2": jax.tree.map(lambda p: 100 * p, params["mlp_2"])}
    expected = head.apply({"params": params}, x)
    np.testing.assert_allclose(head.apply({"params": longer}, x), expected, atol=1e-7)


def test_gradient_is_finite_where_the_bottleneck_is_zero(small):
    head, params, x = small
    nothing = params | {"mlp_2": jax.tree.map(jnp.zeros_like, params["mlp_2"])}
    grads = jax.jit(jax.grad(lambda p: head.apply({"params": p}, x).sum()))(nothing)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_scores_are_float32_in_bfloat16_too(small):
    head, params, x = small
    logits = head.clone(dtype=jnp.bfloat16).apply({"params": params}, x)
    assert logits.dtype == jnp.float32
    # Scores are below 0.1, and bfloat16 keeps 8 bits of each factor.
    np.testing.assert_allclose(logits, head.apply({"params": params}, x), atol=3e-3)
