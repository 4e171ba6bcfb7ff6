"""A tiny DINOv3 backbone with drawn parameters, for tests of what is built on features."""

import jax
import jax.numpy as jnp
import numpy as np

from dino_jax.models import VARIANTS, Extractor, VisionTransformer

SIZES = {"patch_size": 8, "width": 16, "depth": 3, "heads": 2, "layer_scale": 1.0}


def tiny_model(*, seed: int = 0, in_channels: int = 3, **sizes) -> Extractor:
    """Returns an extractor of 16 dimensions whose features differ from image to image."""
    options = VARIANTS["dinov3_vits16"] | SIZES | {"in_channels": in_channels} | sizes
    backbone = VisionTransformer(**options)
    shape = (1, 2 * options["patch_size"], 2 * options["patch_size"], in_channels)
    params = backbone.init(jax.random.key(seed), {"global": jnp.zeros(shape)})["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)
    statistics = {"mean": (0.5,) * in_channels, "std": (0.25,) * in_channels}
    return Extractor("tiny", backbone, params, **statistics)
