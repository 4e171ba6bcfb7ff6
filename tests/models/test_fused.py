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


@pytest.mark.parametrize(
    ("change", "words"),
    [(wrong_values, "7 tokens: off by 0.1"), (wrong_gradients, "7 tokens: off by 0.1"), (not_written, "off by nan")],
)
def test_wrong_results_and_gradients_are_told(portable_cudnn, monkeypatch, change, words):
    kernel = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *inputs, **options: change(kernel(*inputs, **options)))
    assert words in check(7)


def test_a_kernel_that_is_not_there_is_told():
    assert check(6).startswith("6 tokens: ")
