"""What features of an image there are, and the compiled functions that compute them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from dino_jax import compiling
from dino_jax.models import Extractor

OUTPUTS = ("cls", "mean_patch", "gem_patch", "patches", "registers")
GEM_POWER = 4  # as in DINO's evaluation of copy detection


@functools.lru_cache(maxsize=16)
def program(outputs: tuple[str, ...], layers: int, where: NamedSharding) -> Any:
    """Compiles the function from a model and raw images `(images, height, width, channels)` to named outputs.

    Args:
      outputs: of `OUTPUTS`.
      layers: see `extraction.extract_features`.
      where: sharding of the outputs.
    """
    options = compiling.inference_options(where.mesh.devices.flat[0].platform)
    return jax.jit(_features(outputs, layers), out_shardings=where, compiler_options=options)


@functools.lru_cache(maxsize=16)  # JAX keeps its traces by function object
def _features(outputs: tuple[str, ...], layers: int) -> Callable[[Extractor, Array], dict[str, Array]]:
    """Returns the function from a model and raw images to named outputs."""

    def features(model: Extractor, images: Array) -> dict[str, Array]:
        return _outputs_of(model, model.normalize(images), outputs, layers)

    return features


def _outputs_of(model: Extractor, images: Array, outputs: Sequence[str], layers: int) -> dict[str, Array]:
    """Returns the named outputs for normalised images."""
    blocks = [model(images)] if layers == 1 else model.intermediate(images, layers)
    named = [_named(tokens, outputs) for tokens in blocks]
    return named[0] if layers == 1 else {name: jnp.stack([x[name] for x in named], axis=1) for name in outputs}


def _named(tokens: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    pooled = {"mean_patch": lambda patches: patches.mean((1, 2)), "gem_patch": generalised_mean}
    return {
        name: pooled[name](tokens["patches"].astype(jnp.float32)) if name in pooled else tokens[name]
        for name in outputs
    }


def generalised_mean(patches: Array) -> Array:
    """Pools patches `(images, height, width, dim)` to `(images, dim)`; values below 1e-6 count as that."""
    positive = jnp.maximum(patches, 1e-6)
    # Relative to the largest, so that the power stays finite.
    largest = positive.max(axis=(1, 2), keepdims=True)
    return largest[:, 0, 0] * jnp.mean((positive / largest) ** GEM_POWER, axis=(1, 2)) ** (1 / GEM_POWER)


def shapes(model: Extractor, size: int, outputs: tuple[str, ...], layers: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each output of one image, without computing anything."""
    channels = model.backbone.in_channels
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    found = jax.eval_shape(_features(outputs, layers), model, images)
    return {name: found[name].shape[1:] for name in outputs}
