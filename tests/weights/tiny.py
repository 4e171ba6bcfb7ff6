"""Tiny networks of every family with random weights in which no two parameters are alike."""

import numpy as np

from dino_jax.models.extractor import IMAGENET_MEAN, IMAGENET_STD
from dino_jax.weights.manifest import Manifest
from dino_jax.weights.network import Architecture, published
from dino_jax.weights.store import Weights

VIT = {"width": 48, "depth": 3, "heads": 3}
# By what is special about each.
CHANGES = {
    "dino": ("dino_vits8", VIT | {"pos_grid": 5}),
    "dinov2": ("dinov2_vits14", VIT | {"pos_grid": 4}),
    "dinov2_swiglu": ("dinov2_vitg14", VIT | {"pos_grid": 4}),
    "dinov2_registers": ("dinov2_vits14_reg", VIT | {"pos_grid": 4}),
    "dinov3": ("dinov3_vits16", VIT),
    "dinov3_swiglu": ("dinov3_vits16plus", VIT),
    "dinov3_7b": ("dinov3_vit7b16", VIT),
    "convnext": ("dinov3_convnext_tiny", {"depths": (1, 2, 3, 1), "widths": (8, 16, 24, 32)}),
    "resnet": ("dino_resnet50", {"depths": (1, 2, 1, 1), "channels": 8}),
}


def architecture(kind: str) -> Architecture:
    """Returns a tiny architecture, a key of `CHANGES`."""
    name, changes = CHANGES[kind]
    base = published(name)
    return Architecture(f"{base.family}_custom", base.family, {**base.options, **changes})


def weights(kind: str, *, dtype: str = "float32", seed: int = 0) -> Weights:
    """Draws weights for a tiny architecture: norms, biases, gains and tokens are as random as kernels."""
    rng = np.random.default_rng(seed)
    tiny = architecture(kind)
    params = {path: draw(path, shape, rng).astype(dtype) for path, shape in tiny.shapes().items()}
    return Weights(tiny, params, {}, IMAGENET_MEAN, IMAGENET_STD, Manifest("drawn"))


def draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws one parameter, of a size that keeps activations near one."""
    x = rng.normal(size=shape)
    if path.endswith("kernel"):
        return x / np.sqrt(np.prod(shape[-4:-1] if len(shape) >= 4 else shape[-2:-1]))
    if path.endswith(("scale", "gamma")):
        return 1 + 0.3 * x
    return np.exp(0.3 * x) if path.endswith("var") else 0.3 * x
