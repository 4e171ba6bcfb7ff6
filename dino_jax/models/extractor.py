"""A backbone with its parameters, for those who want features: images in, tokens on a grid out."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dino_jax.models.readout import intermediate_layers, last_attention, last_keys
from dino_jax.models.stages import STATS, intermediate_stages
from dino_jax.models.vit import VisionTransformer

Params = dict[str, Any]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "batch_stats"],
    meta_fields=["name", "backbone", "mean", "std", "bits"],
)
@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, so that jax.jit(model) works too
class Extractor:
    """A frozen backbone. A pytree whose leaves are the parameters, so it passes through jit, vmap and device_put:
    `jax.jit(lambda model, images: model(images))(model, images)` does not bake the weights into the program.

    Attributes:
      name: of the architecture, such as "dinov3_vitl16".
      params: the backbone's parameters.
      mean, std: per-channel statistics of the images it was trained on, for images in [0, 1].
      batch_stats: running statistics of a ResNet's BatchNorm; empty for other networks. They belong to the weights:
        whoever saves or replaces `params` takes them along.
      bits: of the samples that it sees: 8, 16, or 0 for 8 of RGB and 16 of other channels.
    """

    name: str
    backbone: Any
    params: Params = dataclasses.field(repr=False)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    batch_stats: Params = dataclasses.field(default_factory=dict, repr=False)
    bits: int = 0

    @property
    def patch_size(self) -> int:
        """Pixels from one patch to the next; image sides are multiples of it."""
        return self.backbone.patch_size

    @property
    def width(self) -> int:
        """Dimensions of a feature."""
        return self.backbone.width

    @property
    def depth(self) -> int:
        """Blocks, or stages of a convolutional network."""
        return self.backbone.depth if isinstance(self.backbone, VisionTransformer) else len(self.backbone.depths)

    def variables(self) -> dict[str, Params]:
        """Returns what the backbone is applied to."""
        params = {"params": self.params}
        return params | {STATS: self.batch_stats} if self.batch_stats else params

    def normalize(self, images: Array) -> Array:
        """Brings images `(..., height, width, channels)`, uint8, uint16 or floats in [0, 1], to the network's range.

        Raises:
          ValueError: for other types, whose largest value is unknown, and NumPy's floats beyond 2.
        """
        # JAX would take 64-bit integers for 32-bit ones.
        images = images if isinstance(images, Array) else np.asarray(images)
        dtype = images.dtype
        if dtype in (np.uint8, np.uint16):
            images = jnp.asarray(images, jnp.float32) / jnp.iinfo(dtype).max
        elif not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"images must be uint8, uint16 or floats in [0, 1], got {dtype}: convert to uint8 or uint16"
            )
        elif isinstance(images, np.ndarray) and images.size and images.max() > 2:
            raise ValueError(f"images reach {images.max():g}, floats must be in [0, 1]: give uint8, or divide by 255")
        channels = len(self.mean)
        if images.shape[-1:] != (channels,):
            raise ValueError(
                f"{self.name} takes images (..., height, width, {channels}), got {images.shape}: put channels last"
            )
        return (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def __call__(self, images: Array) -> dict[str, Array]:
        """Computes the features of normalised images.

        Args:
          images: float `(batch, height, width, channels)`, see `normalize`; for transformers, sides are multiples of
            `patch_size`.

        Returns:
          "cls" `(batch, width)`, "registers" `(batch, registers, width)` and "patches" `(batch, height / patch_size,
          width / patch_size, width)`, all after the final norm. For sides that are not
          multiples of `patch_size`, ConvNeXt rounds down and ResNet up.

        Raises:
          ValueError: if the images do not fit the network.
        """
        self._check(images)
        return _tokens(self, images)

    def intermediate(
        self, images: Array, layers: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[dict[str, Array]]:
        """Computes the features after several blocks (of a convolutional network: stages).

        Args:
          layers: how many of the last ones, or their indices (negative ones count from the end).
          norm: apply the final norm to each.

        Returns:
          As `__call__`, for each block in the order asked.

        Raises:
          ValueError: if the images do not fit the network, or it has no such blocks.
        """
        self._check(images)
        return _intermediate(self, images, layers=tuple(self._wanted(layers)), norm=norm)

    def attention(self, images: Array, *, queries: int | None = None) -> Array:
        """Returns the last block's attention `(batch, heads, queries, tokens)`; tokens are CLS, registers, patches.

        Args:
          queries: how many of the first tokens; all by default.

        Raises:
          ValueError: for a network without attention.
        """
        self.check_attention()
        self._check(images)
        return _attention(self, images, queries=queries)

    def keys(self, images: Array) -> Array:
        """Returns the patches' keys in the last block's attention, `(batch, rows, columns, width)`, see `last_keys`.

        Raises:
          ValueError: for a network without attention.
        """
        self.check_attention()
        self._check(images)
        return _keys(self, images)

    def check_attention(self) -> None:
        """Raises ValueError for a network without attention."""
        if not isinstance(self.backbone, VisionTransformer):
            raise ValueError(f"{self.name} has no attention: it is not a transformer")

    def _wanted(self, layers: int | Sequence[int]) -> list[int]:
        """Returns the indices of blocks, which JAX would clamp."""
        count = self.depth
        known = 1 <= layers <= count if isinstance(layers, int) else all(-count <= i < count for i in layers)
        if not known:
            kind = "blocks" if isinstance(self.backbone, VisionTransformer) else "stages"
            allowed = f"1 to {count}" if isinstance(layers, int) else f"indices from {-count} to {count - 1}"
            raise ValueError(f"{self.name} has {count} {kind}, asked for {layers}: use {allowed}")
        return list(range(-layers, 0)) if isinstance(layers, int) else list(layers)

    def _check(self, images: Array) -> None:
        channels = self.backbone.in_channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(
                f"{self.name} takes images (batch, height, width, {channels}), got {images.shape}: "
                "put channels last, or load it with in_chans=N for other channels"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"{self.name} takes normalised floats, got {images.dtype}: use model.normalize(images)")


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiles once for each network, shape and question, and keeps that as long as the process lives.

    A Flax module applied as it is compiles its scan over blocks anew in every call. Where the network computes in
    float32, so do its products, as matrix products in PyTorch; JAX's default on GPUs and TPUs has fewer bits.
    """

    @functools.wraps(function)
    def precise(model: Extractor, images: Array, **named: Any) -> Any:
        asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        whole = jnp.dtype(model.backbone.dtype) == jnp.float32 and asked is None
        with jax.default_matmul_precision("highest") if whole else contextlib.nullcontext():
            return function(model, images, **named)

    return jax.jit(precise, inline=True, **options)


@_compiled
def _tokens(model: Extractor, images: Array) -> dict[str, Array]:
    tokens = model.backbone.apply(model.variables(), {"global": images})["global"]
    return _on_grid(model, tokens, images, layer=-1)


@functools.partial(_compiled, static_argnames=("layers", "norm"))
def _intermediate(model: Extractor, images: Array, *, layers: tuple[int, ...], norm: bool) -> list[dict[str, Array]]:
    if isinstance(model.backbone, VisionTransformer):
        blocks = intermediate_layers(model.backbone, model.params, images, list(layers), norm=norm)
    else:
        stats = model.batch_stats
        blocks = intermediate_stages(model.backbone, model.params, images, list(layers), norm=norm, batch_stats=stats)
    return [_on_grid(model, block, images, layer=layer) for block, layer in zip(blocks, layers, strict=True)]


@functools.partial(_compiled, static_argnames="queries")
def _attention(model: Extractor, images: Array, *, queries: int | None) -> Array:
    return last_attention(model.backbone, model.params, images, queries=queries)


@_compiled
def _keys(model: Extractor, images: Array) -> Array:
    keys = last_keys(model.backbone, model.params, images)
    return keys.reshape(len(keys), *model.backbone.grid(images.shape[1:3]), -1)


def _on_grid(model: Extractor, tokens: dict[str, Array], images: Array, *, layer: int) -> dict[str, Array]:
    patches = tokens["patches"]
    grid = model.backbone.grid(images.shape[1:3], layer)
    on_grid = patches.reshape(patches.shape[0], *grid, patches.shape[-1])
    return {"cls": tokens["cls"], "registers": tokens["registers"], "patches": on_grid}
