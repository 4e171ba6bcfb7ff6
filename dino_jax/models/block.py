"""What a vision transformer is made of: its patch embedding and its blocks."""

import functools
from typing import Any

from einops import rearrange
from flax import linen as nn
from jax import Array

from dino_jax.models import layers


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects them linearly."""

    patch_size: int
    in_channels: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `(batch, height, width, in_channels)` to `(batch, patches, width)`, patches row-major."""
        p = self.patch_size
        init = layers.torch_init(p * p * self.in_channels)
        kernel = self.param("kernel", init, (p, p, self.in_channels, self.width))
        bias = self.param("bias", init, (self.width,))
        if images.shape[1] % p or images.shape[2] % p:
            raise ValueError(f"image size {images.shape[1:3]} is not a multiple of the patch size {p}: crop or pad it")
        pixels = rearrange(images.astype(self.dtype), "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
        return layers.plus(pixels @ kernel.reshape(-1, self.width).astype(self.dtype), bias)


class Block(nn.Module):
    """A pre-norm transformer block; runs every crop group with one set of weights."""

    width: int
    heads: int
    ffn: str
    hidden: int
    norm: str
    norm_epsilon: float
    layer_scale: float
    qkv_bias: bool
    mask_key_bias: bool
    proj_bias: bool
    ffn_bias: bool
    drop_path: float
    shards: int
    dtype: Any
    attention: str

    def setup(self):
        options = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        self.norm1 = layers.norm(self.norm, **options, name="norm1")
        self.norm2 = layers.norm(self.norm, **options, name="norm2")
        self.attn = layers.Attention(
            self.width, self.heads, self.qkv_bias, self.mask_key_bias, self.proj_bias, self.dtype, self.attention
        )
        feed_forward: Any = {"mlp": layers.Mlp, "swiglu": layers.SwiGlu}[self.ffn]
        self.mlp = feed_forward(self.width, self.hidden, self.ffn_bias, self.dtype)
        if self.layer_scale:
            self.ls1 = layers.LayerScale(self.layer_scale, self.dtype)
            self.ls2 = layers.LayerScale(self.layer_scale, self.dtype)

    def __call__(
        self,
        groups: dict[str, Array],
        ropes: dict[str, layers.Table | None],
        train: bool,
        collect: bool,
        rate: Array | None,
        lengths: dict[str, Array | int | None],
    ):
        """Maps each group's tokens `(batch, tokens, width)`; returns (groups, groups if `collect` else None)."""
        out = {}
        for name, x in groups.items():
            attend = functools.partial(self.attention_branch, table=ropes[name], length=lengths[name])
            x = self.residual(attend, x, train, rate)
            out[name] = self.residual(self.feed_forward_branch, x, train, rate)
        return out, (out if collect else None)

    def attention_branch(self, x: Array, *, table: layers.Table | None, length: Array | int | None) -> Array:
        """Returns what the attention adds to `(batch, tokens, width)`."""
        y = self.attn(self.norm1(x), table, length)
        return self.ls1(y) if self.layer_scale else y

    def feed_forward_branch(self, x: Array) -> Array:
        """Returns what the feed-forward adds to `(batch, tokens, width)`."""
        y = self.mlp(self.norm2(x))
        return self.ls2(y) if self.layer_scale else y

    def residual(self, branch, x: Array, train: bool, rate: Array | None) -> Array:
        """Adds `branch(x)` to x; when training with stochastic depth, on a random subset of the batch, or to random
        samples if this block has a `rate` of its own."""
        if not train or self.drop_path == 0.0:
            return x + branch(x)
        key = self.make_rng("drop_path")
        if rate is not None:
            return layers.residual_per_sample(branch, x, key, rate=rate)
        return layers.residual_on_subset(branch, x, key, rate=self.drop_path, shards=self.shards)

    def attention_probabilities(self, x: Array, table: layers.Table | None, queries: int | None) -> Array:
        """Returns this block's attention weights for its input, see `layers.Attention.probabilities`."""
        return self.attn.probabilities(self.norm1(x), table, queries)
