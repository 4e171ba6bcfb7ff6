"""Images of other than three channels for networks whose weights know red, green and blue."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

Params = dict[str, Any]
# Where the first convolution is, in a transformer, a ConvNeXt and a ResNet.
FIRST_LAYERS = (("patch_embed",), ("stages_0", "downsample", "conv"), ("stem", "conv"))


def inflate_patch_embed(params: Params, in_channels: int) -> Params:
    """Returns parameters for images of `in_channels` channels, made of those for fewer, mostly three.

    The first kernel is repeated along its channels, R G B R G ..., and scaled so that its sum stays in proportion:
    where all channels are equal and their number is a multiple, features stay as they were. One channel gets the sum of
    all. timm does the same.

    Args:
      params: of a `VisionTransformer`, `ConvNext` or `ResNet`; not changed.

    Raises:
      ValueError: if there is no first convolution where these networks have it, or `in_channels` is below 1.
    """
    if in_channels < 1:
        raise ValueError(f"in_channels = {in_channels} must be at least 1")
    for path in FIRST_LAYERS:
        layer = params
        for key in path:
            layer = layer.get(key, {})
        if "kernel" in layer:
            return _with(params, (*path, "kernel"), inflate(layer["kernel"], in_channels))
    raise ValueError(f"no first convolution among {', '.join(params)}: give a backbone's parameters")


def inflate(kernel: Array, in_channels: int) -> Array:
    """Repeats a kernel `(height, width, channels, features)` to `in_channels` channels, see `inflate_patch_embed`."""
    channels = kernel.shape[2]
    if in_channels == channels:
        return kernel
    if in_channels == 1:
        return kernel.sum(2, keepdims=True)
    return jnp.take(kernel, np.arange(in_channels) % channels, axis=2) * (channels / in_channels)


def _with(tree: Params, path: tuple[str, ...], leaf: Array) -> Params:
    """Returns the tree with another leaf at `path`."""
    key, *rest = path
    return tree | {key: _with(tree[key], tuple(rest), leaf) if rest else leaf}
