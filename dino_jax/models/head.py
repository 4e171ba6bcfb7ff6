"""The projection head onto prototypes (DINO arXiv 2104.14294, section 3.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from dino_jax.models import layers

GAINS = ("none", "frozen", "trained")


class PrototypeHead(nn.Module):
    """MLP with GELU, L2-normalised bottleneck, bias-free linear map onto `prototypes` scores.

    Attributes:
      mlp_layers: linear layers before the normalisation; 1 gives a single linear map.
      gain: "none" has a plain last layer (DINOv3). Otherwise it is weight-normalised (arXiv 1602.07868): each
        prototype's direction is brought to the length of its gain, which starts at 1 and is "frozen" (DINO) or
        "trained" (DINOv2). A frozen gain is a parameter without gradient: whoever decays weights leaves it out.
    """

    prototypes: int
    hidden: int
    bottleneck: int
    mlp_layers: int = 3
    gain: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scores `(..., dim)` features against all prototypes: `(..., prototypes)` in float32."""
        widths = [self.hidden] * (self.mlp_layers - 1) + [self.bottleneck]
        for index, width in enumerate(widths):
            x = layers.Dense(width, bias=True, dtype=self.dtype, name=f"mlp_{index}")(x)
            if index < len(widths) - 1:
                x = layers.gelu(x)
        x = x.astype(jnp.float32)
        # Clamping the squared norm keeps the gradient finite at zero; 1e-24 is torch's eps of 1e-12 on the norm.
        x = (x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))).astype(self.dtype)
        return Prototypes(self.prototypes, self.gain, self.dtype, name="prototypes")(x)


class Prototypes(nn.Module):
    """Scores features against prototypes: a linear map without bias, weight-normalised if it has a gain."""

    count: int
    gain: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `(..., dim)` to `(..., count)` in float32."""
        if self.gain not in GAINS:
            raise ValueError(f"gain = {self.gain!r} is not one of {', '.join(map(repr, GAINS))}")
        # DINO and DINOv2 leave the normalised layer at PyTorch's initialisation; its length sets the pace of learning.
        init = layers.normal_init if self.gain == "none" else layers.torch_init(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.count))
        if self.gain != "none":
            gain = self.param("gain", nn.initializers.ones, (self.count,))
            gain = jax.lax.stop_gradient(gain) if self.gain == "frozen" else gain
            kernel = kernel * (gain * jax.lax.rsqrt(jnp.sum(kernel * kernel, axis=0)))
        return layers.product("...d,dp->...p", x, kernel.astype(self.dtype))
