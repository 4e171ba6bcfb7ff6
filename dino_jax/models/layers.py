"""Building blocks of the networks: norms, LayerScale, attention, feed-forward, stochastic depth."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from dino_jax.models import rope

Dtype = Any
Table = tuple[Array, Array]

# PyTorch's trunc_normal_(std=0.02) cuts at an absolute +-2, a hundred deviations away: it is a plain normal.
normal_init = nn.initializers.normal(0.02)

# Above this, attention is computed in blocks: for the 47,600 tokens of a photograph of 12 megapixels, one head has
# 9 GB of weights. Crops in training stay below; those of DINOv3's last phase, of 768 pixels, have 2309 tokens.
MOST_WHOLE = 4096  # keys
QUERY_BLOCK = 256


class Dense(nn.Module):
    """A linear layer with the initialisation of the DINO transformers (normal 0.02, zero bias)."""

    features: int
    bias: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `(..., dim)` to `(..., features)`."""
        kernel = self.param("kernel", normal_init, (x.shape[-1], self.features))
        y = rows_times(x, kernel.astype(self.dtype))
        if not self.bias:
            return y
        return plus(y, self.param("bias", nn.initializers.zeros, (self.features,)))


def plus(x: Array, parameter: Array) -> Array:
    """Adds a float32 parameter that is the same for all samples; so its gradient is summed in float32 as well."""
    return (x.astype(jnp.float32) + parameter).astype(x.dtype)


def product(spec: str, a: Array, b: Array) -> Array:
    """Computes an `einsum` of two arrays of one type, summed and returned in float32.

    Its gradients are products in the arrays' own type, as in fused kernels: JAX would multiply in float32, which takes
    GPUs several times as long as 16 bits.
    """
    # Gradients are traced later, when what is asked for here may not hold any more.
    return _product(spec, jax.config.jax_default_matmul_precision, a, b)  # type: ignore[attr-defined]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec: str, precision: str | None, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def _product_forward(spec: str, precision: str | None, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(spec, precision, a, b), (a, b)


def _product_backward(
    spec: str, precision: str | None, operands: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    _, pull = jax.vjp(functools.partial(jnp.einsum, spec, precision=precision), *operands)
    return pull(gradient.astype(operands[0].dtype))


_product.defvjp(_product_forward, _product_backward)


def rows_times(x: Array, kernel: Array) -> Array:
    """Multiplies `(..., dim)` by a kernel `(dim, features)` as one plain matrix product.

    The kernel's gradient is then one product, too; with two axes of samples, XLA would transpose the tokens first.
    """
    y = x.astype(kernel.dtype).reshape(-1, x.shape[-1]) @ kernel
    return y.reshape(*x.shape[:-1], -1)


def torch_init(fan_in: int) -> Callable[..., Array]:
    """Returns PyTorch's default initialisation of layers, uniform within 1 / sqrt(fan_in), for weights and biases."""
    limit = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, minval=-limit, maxval=limit)

    return init


def norm(kind: str, *, epsilon: float, dtype: Dtype, name: str) -> nn.Module:
    """Builds a "layernorm" or "rmsnorm" that computes its statistics in float32."""
    if kind == "layernorm":
        return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)
    if kind == "rmsnorm":
        return nn.RMSNorm(epsilon=epsilon, dtype=dtype, name=name)
    raise ValueError(f"norm = {kind!r} is not one of 'layernorm', 'rmsnorm'")


def swiglu_hidden(width: int, ratio: float, align: int) -> int:
    """Returns the hidden width of SwiGLU: two thirds of `width * ratio`, rounded up to a multiple of `align`."""
    hidden = int(int(width * ratio) * 2 / 3)
    return hidden + (-hidden % align)


class LayerScale(nn.Module):
    """Multiplies each channel by a learned gain (CaiT, arXiv 2103.17239)."""

    initial: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scales `(..., dim)`."""
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return (x.astype(jnp.float32) * gamma).astype(self.dtype)  # so that the gain's gradient is summed in float32


class QKV(nn.Module):
    """Projects tokens to queries, keys and values, the key bias optionally held at zero."""

    width: int
    bias: bool
    mask_key_bias: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `(batch, tokens, width)` to `(batch, tokens, 3 * width)`, ordered q | k | v."""
        kernel = self.param("kernel", normal_init, (self.width, 3 * self.width))
        y = rows_times(x, kernel.astype(self.dtype))
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (3 * self.width,))
        if self.mask_key_bias:
            bias = bias * np.repeat(np.array([1, 0, 1], np.float32), self.width)
        return plus(y, bias)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Computes `softmax(q k' / sqrt(head_dim)) v` for `(batch, tokens, heads, head_dim)`, the softmax in float32.

    Equal to `jax.nn.dot_product_attention`, and faster on CPUs: heads stand before tokens, so that the products are
    plain matrices, and the sum of the softmax divides the small product instead of the weights.

    Above `MOST_WHOLE` keys, the weights are formed for `QUERY_BLOCK` queries at a time.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    y = attend_heads(q, k, v) if k.shape[2] <= MOST_WHOLE else attend_by_blocks(q, k, v, block=QUERY_BLOCK)
    return jnp.swapaxes(y, 1, 2).astype(v.dtype)


def attend_heads(q: Array, k: Array, v: Array) -> Array:
    """Computes `attend` for `(batch, heads, tokens, head_dim)`, in float32."""
    logits = product("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    y = product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v)
    return y / weights.sum(axis=-1, keepdims=True)


def attend_by_blocks(q: Array, k: Array, v: Array, *, block: int) -> Array:
    """Computes `attend_heads` for one block of queries after another, each over all keys: the same result, less memory.

    The backward pass forms the weights of a block again.
    """
    batch, heads, tokens, dim = q.shape
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, -tokens % block), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(batch, heads, padded.shape[2] // block, block, dim), 2, 0)
    y = jax.lax.map(jax.checkpoint(lambda rows: attend_heads(rows, k, v), prevent_cse=False), blocks)
    return jnp.moveaxis(y, 0, 2).reshape(batch, heads, padded.shape[2], dim)[:, :, :tokens]


def attend_fused(q: Array, k: Array, v: Array, length: Array | int | None) -> Array:
    """Computes `attend` in cuDNN's kernel, which never writes the weights to memory; NVIDIA GPUs and bfloat16 only.

    Its backward pass takes even numbers of tokens alone.

    Args:
      q, k, v: `(batch, tokens, heads, head_dim)`.
      length: number of real tokens, the rest being padding that nothing attends to; None if all are real.
    """
    if length is None:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # The kernel need not write the gradients of keys and values beyond the length: they are replaced by zeros here.
    inside = (jnp.arange(k.shape[1]) < length)[:, None, None]
    k, v = (jnp.where(inside, x, 0) for x in (k, v))
    lengths = jnp.full(len(q), length, jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")


class Attention(nn.Module):
    """Multi-head self-attention, with rotary positions on queries and keys where it is given their table."""

    width: int
    heads: int
    qkv_bias: bool
    mask_key_bias: bool
    proj_bias: bool
    dtype: Dtype
    implementation: str = "xla"  # or "cudnn"

    def setup(self):
        self.qkv = QKV(self.width, self.qkv_bias, self.mask_key_bias, self.dtype)
        self.proj = Dense(self.width, bias=self.proj_bias, dtype=self.dtype, name="proj")

    def queries_keys_values(self, x: Array, table: Table | None) -> tuple[Array, Array, Array]:
        """Returns q and k, rotated if there is a table, and v, each `(batch, tokens, heads, head_dim)`."""
        batch, tokens, _ = x.shape
        q, k, v = (y.reshape(batch, tokens, self.heads, -1) for y in jnp.split(self.qkv(x), 3, axis=-1))
        if table is None:
            return q, k, v
        return rope.rotate(q, table), rope.rotate(k, table), v

    def __call__(self, x: Array, table: Table | None, length: Array | int | None = None) -> Array:
        """Attends over `(batch, tokens, width)`; `length` is for "cudnn" alone, see `attend_fused`."""
        q, k, v = self.queries_keys_values(x, table)
        y = attend_fused(q, k, v, length) if self.implementation == "cudnn" else attend(q, k, v)
        return self.proj(y.reshape(x.shape))

    def probabilities(self, x: Array, table: Table | None, queries: int | None) -> Array:
        """Returns the attention weights `(batch, heads, queries, tokens)` of the first tokens or all, in float32."""
        q, k, _ = self.queries_keys_values(x, table)
        logits = product("bqhd,bkhd->bhqk", q[:, :queries], k)
        return jax.nn.softmax(logits / np.sqrt(q.shape[-1]), axis=-1)


def gelu(x: Array) -> Array:
    """Computes the exact GELU, `x * (1 + erf(x / sqrt(2))) / 2`, in float32.

    As PyTorch does; `jax.nn.gelu` takes erfc, which is more accurate far below zero (where this is off by 1e-6) and
    four times slower on CPUs.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    width: int
    hidden: int
    bias: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `(..., width)` to itself."""
        x = Dense(self.hidden, bias=self.bias, dtype=self.dtype, name="fc1")(x)
        x = gelu(x)
        return Dense(self.width, bias=self.bias, dtype=self.dtype, name="fc2")(x)


class SwiGlu(nn.Module):
    """Gated feed-forward `w3(silu(w1 x) * w2 x)` (arXiv 2002.05202)."""

    width: int
    hidden: int
    bias: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `(..., width)` to itself."""
        gate = Dense(self.hidden, bias=self.bias, dtype=self.dtype, name="w1")(x)
        value = Dense(self.hidden, bias=self.bias, dtype=self.dtype, name="w2")(x)
        return Dense(self.width, bias=self.bias, dtype=self.dtype, name="w3")(jax.nn.silu(gate) * value)


def residual_on_subset(branch: Callable[[Array], Array], x: Array, key: Array, *, rate: float, shards: int) -> Array:
    """Adds `branch(x)` on a random subset of the samples, rescaled (batch-subset stochastic depth, DINOv2 section 5).

    Skipped samples cost nothing. The subset is drawn separately inside each of `shards` equal slices of the batch, one
    per data shard of the mesh, so its size is static and no sample crosses devices. Of many samples, it is rounded to
    a multiple that suits matrix units, see `aligned`.

    Args:
      branch: residual branch, `(samples, tokens, dim)` to the same shape.
      x: `(batch, tokens, dim)`; `shards` must divide the batch.
      rate: share of the samples that skip the branch; at least one sample per slice is kept.
    """
    slices = x.reshape(shards, x.shape[0] // shards, *x.shape[1:])
    size = slices.shape[1]
    kept = aligned(max(int(size * (1 - rate)), 1), most=size)
    chosen = jnp.argsort(jax.random.uniform(key, (shards, size)), axis=1)[:, :kept]
    # In order and each once, which GPUs gather and add without locks.
    known: Any = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}
    chosen = jnp.sort(chosen, axis=1)
    subset = jax.vmap(lambda rows, index: rows.at[index].get(**known))(slices, chosen)
    update = branch(subset.reshape(-1, *x.shape[1:])).reshape(subset.shape) * (size / kept)
    return jax.vmap(lambda rows, index, add: rows.at[index].add(add, **known))(slices, chosen, update).reshape(x.shape)


def aligned(samples: int, *, most: int) -> int:
    """Rounds a number of samples to a multiple of 2, 4, ... or 64 that moves it by at most 1 in 32.

    A sample often has an odd number of tokens, and GPUs copy matrices whose rows are no multiple of 8 or more before
    they multiply them. Numbers up to 31 stay as they are, and so does one that would be rounded up to all, `most`.
    """
    multiple = min(64, 1 << max((samples // 16).bit_length() - 1, 0))
    rounded = round(samples / multiple) * multiple
    return rounded if rounded < most else samples


def residual_per_sample(branch: Callable[[Array], Array], x: Array, key: Array, *, rate: Array | float) -> Array:
    """Adds `branch(x)`, rescaled, to random samples (stochastic depth, arXiv 1603.09382; DINO).

    All samples are computed, so that the rate may differ from block to block in one program.

    Args:
      branch: residual branch, `(batch, tokens, dim)` to the same shape.
      x: `(batch, tokens, dim)`.
      rate: probability that a sample skips the branch, below 1.
    """
    kept = jax.random.bernoulli(key, 1 - rate, (len(x), 1, 1))
    return x + branch(x) * (kept / (1 - rate)).astype(x.dtype)
