"""The projection head onto prototypes (DINO arXiv 2104.14294, section 3.1)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from dino_jax.models import layers


class PrototypeHead(nn.Module):
    """MLP with GELU, L2-normalised bottleneck, bias-free linear map onto `prototypes` scores.

    DINOv3's form: the last layer is a plain linear one, without weight normalisation.

    Attributes:
      mlp_layers: linear layers before the normalisation; 1 gives a single linear map.
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    mlp_layers: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """Scores `(..., dim)` features against all prototypes.

        Returns:
          "bottleneck" `(..., bottleneck)` normalised, in the compute dtype; "logits" `(..., prototypes)` in float32.
        """
        widths = [self.hidden] * (self.mlp_layers - 1) + [self.bottleneck]
        for index, width in enumerate(widths):
            x = layers.dense(width, bias=True, dtype=self.dtype, name=f"mlp_{index}")(x)
            if index < len(widths) - 1:
                x = jax.nn.gelu(x, approximate=False)
        x = x.astype(jnp.float32)
        # Clamping the squared norm keeps the gradient finite at zero; 1e-24 is torch's eps of 1e-12 on the norm.
        x = (x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))).astype(self.dtype)
        in_float32 = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        prototypes = nn.Dense(
            self.prototypes,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.normal_init,
            dot_general=in_float32,
            name="prototypes",
        )
        return {"bottleneck": x, "logits": prototypes(x)}
