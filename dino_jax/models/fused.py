"""Checks cuDNN's attention against ours, as its kernel depends on the installed cuDNN."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from dino_jax.models.layers import attend, attend_fused

# Relative to each array's largest entry. Rounding to bfloat16 alone puts `attend` and JAX's function 0.006 to 0.008
# apart on CPUs, for 41 to 581 tokens.
TOLERANCE = 0.02


def disagreement(*, tokens: int, head_dim: int, device: jax.Device) -> str:
    """Compares the results and gradients of `layers.attend_fused` with those of `layers.attend` on noise, in bfloat16.

    Args:
      tokens: how many there are; an odd number is padded by one that is not attended to, as in the transformer.

    Returns:
      What is wrong, in words; "" if the two agree.
    """
    filled = tokens + tokens % 2
    keys = jax.random.split(jax.random.key(tokens), 4)
    q, k, *others = (jax.random.normal(key, (2, filled, 2, head_dim), jnp.bfloat16) for key in keys)
    # All scores are far below zero; that of a token that fills up is zero, and it would take most of the weight.
    *inputs, cotangent = jax.device_put([jnp.abs(q), -jnp.abs(k), *others], device)
    length = tokens if filled > tokens else None
    try:
        found = _with_gradients(lambda q, k, v: attend_fused(q, k, v, length), inputs, cotangent, tokens)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"{tokens} tokens: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    expected = _with_gradients(attend, [x[:, :tokens] for x in inputs], cotangent, tokens)
    off = max(map(_relative_error, found, expected), key=lambda value: math.inf if math.isnan(value) else value)
    return "" if off < TOLERANCE else f"{tokens} tokens: off by {off:.2g} of the largest entry"


def _with_gradients(
    function: Callable[..., Array], inputs: list[Array], cotangent: Array, tokens: int
) -> tuple[Array, ...]:
    """Returns the function's result for the first tokens, alone and with the gradients of their inputs.

    Kernels that keep something for the backward pass are others than those that do not.
    """

    def first(*x: Array) -> Array:
        return function(*x)[:, :tokens]

    @jax.jit
    def differentiated(inputs: list[Array], cotangent: Array) -> tuple[Array, ...]:
        out, backward = jax.vjp(first, *inputs)
        return out, *(gradient[:, :tokens] for gradient in backward(cotangent))

    return jax.jit(first)(*inputs), *differentiated(inputs, cotangent[:, :tokens])


def _relative_error(found: Array, expected: Array) -> float:
    """Returns the largest difference over the largest entry; NaN if there is one."""
    found, expected = (x.astype(jnp.float32) for x in (found, expected))
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
