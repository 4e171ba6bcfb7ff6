"""Whether a kernel that goes wrong is noticed; the right one is imitated on CPUs."""

import jax
import jax.numpy as jnp
import pytest

from dino_jax.models import fused


def check(tokens: int) -> str:
    return fused.disagreement(tokens=tokens, head_dim=16, device=jax.devices()[0])


@pytest.mark.parametrize("tokens", [6, 7])
def test_a_kernel_that_rounds_to_bfloat16_agrees(portable_cudnn, tokens):
    assert check(tokens) == ""


def wrong_values(x):
    return 1.1 * x


@jax.custom_vjp
def wrong_gradients(x):
    return x


wrong_gradients.defvjp(lambda x: (x, None), lambda _, gradient: (1.1 * gradient,))


@jax.custom_vjp
def not_written(x):
    return x


not_written.defvjp(lambda x: (x, None), lambda _, gradient: (gradient.at[0, 2].set(jnp.nan),))


def change(monkeypatch, function):
    """Passes the results of the kernel through a function."""
    kernel = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, **options: function(kernel(*x, **options)))


@pytest.mark.parametrize(
    ("function", "words"),
    [(wrong_values, "7 tokens: off by 0.1"), (wrong_gradients, "7 tokens: off by 0.1"), (not_written, "off by nan")],
)
def test_wrong_results_and_gradients_are_told(portable_cudnn, monkeypatch, function, words):
    change(monkeypatch, function)
    assert words in check(7)


@pytest.mark.parametrize("tokens", [41, 149])
def test_a_kernel_that_attends_to_what_fills_up_is_told(portable_cudnn, monkeypatch, tokens):
    kernel = jax.nn.dot_product_attention

    def careless(*inputs, key_value_seq_lengths=None, **options):
        return kernel(*inputs, **options)

    assert check(tokens) == ""
    monkeypatch.setattr(jax.nn, "dot_product_attention", careless)
    assert f"{tokens} tokens: off by" in check(tokens)


def test_a_kernel_that_goes_wrong_without_gradients_is_told(portable_cudnn, monkeypatch):
    @jax.custom_vjp
    def wrong_alone(x):
        return 1.1 * x

    wrong_alone.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))
    change(monkeypatch, wrong_alone)
    assert "7 tokens: off by 0.1" in check(7)


def test_a_kernel_that_is_not_there_is_told():
    assert check(6).startswith("6 tokens: ")
