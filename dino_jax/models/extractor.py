"""A backbone with its parameters, for those who want features: images in, tokens on a grid out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dino_jax.models.convnext import ConvNext, intermediate_stages
from dino_jax.models.vit import VisionTransformer, intermediate_layers, last_attention

Params = dict[str, Any]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["name", "backbone", "mean", "std"]
)
@dataclasses.dataclass(frozen=True)
class Extractor:
    """A frozen backbone. A pytree whose leaves are the parameters, so it passes through jit, vmap and device_put:
    `jax.jit(lambda model, images: model(images))(model, images)` does not bake the weights into the program.

    Attributes:
      name: of the architecture, such as "dinov3_vitl16".
      params: the backbone's parameters.
      mean, std: per-channel statistics of the images it was trained on, for images in [0, 1].
    """

    name: str
    backbone: Any
    params: Params
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def patch_size(self) -> int:
        """Pixels from one patch to the next; image sides are multiples of it."""
        return self.backbone.patch_size

    @property
    def width(self) -> int:
        """Dimensions of a feature."""
        return self.backbone.width

    def normalize(self, images: Array) -> Array:
        """Brings images `(..., height, width, channels)`, uint8, uint16 or floats in [0, 1], to the network's range."""
        images = jnp.asarray(images)
        if jnp.issubdtype(images.dtype, jnp.integer):
            images = images.astype(jnp.float32) / jnp.iinfo(images.dtype).max
        return (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def __call__(self, images: Array, params: Params | None = None) -> dict[str, Array]:
        """Computes the features of normalised images.

        Args:
          images: float `(batch, height, width, channels)`, see `normalize`; sides are multiples of `patch_size`.
          params: used in place of the model's own.

        Returns:
          "cls" `(batch, width)`, "registers" `(batch, registers, width)` and "patches" `(batch, height / patch_size,
          width / patch_size, width)`, all after the final norm.

        Raises:
          ValueError: if the images do not fit the network.
        """
        self._check(images)
        params = self.params if params is None else params
        return self._on_grid(self.backbone.apply({"params": params}, {"global": images})["global"], images)

    def intermediate(
        self, images: Array, layers: int | Sequence[int] = 1, *, norm: bool = True, params: Params | None = None
    ) -> list[dict[str, Array]]:
        """Computes the features after several blocks (of a convolutional network: stages).

        Args:
          layers: how many of the last ones, or their indices (negative ones count from the end).
          norm: apply the final norm to each.

        Returns:
          As `__call__`, for each block in the order asked.
        """
        self._check(images)
        params = self.params if params is None else params
        wanted = list(range(-layers, 0)) if isinstance(layers, int) else list(layers)
        collect: Any = intermediate_stages if isinstance(self.backbone, ConvNext) else intermediate_layers
        blocks = collect(self.backbone, params, images, wanted, norm=norm)
        return [self._on_grid(block, images) for block in blocks]

    def attention(self, images: Array, params: Params | None = None) -> Array:
        """Returns the last block's attention `(batch, heads, tokens, tokens)`; tokens are CLS, registers, patches.

        Raises:
          ValueError: for a network without attention.
        """
        if not isinstance(self.backbone, VisionTransformer):
            raise ValueError(f"{self.name} has no attention: it is no transformer")
        self._check(images)
        return last_attention(self.backbone, self.params if params is None else params, images)

    def _on_grid(self, tokens: dict[str, Array], images: Array) -> dict[str, Array]:
        patches = tokens["patches"]
        height, width = images.shape[1:3]
        # Stages of a convolutional network differ in stride; all keep the image's aspect.
        count = patches.shape[1]
        rows = round((count * height / width) ** 0.5)
        grid = patches.reshape(len(patches), rows, count // rows, patches.shape[-1])
        return {"cls": tokens["cls"], "registers": tokens["registers"], "patches": grid}

    def _check(self, images: Array) -> None:
        channels = self.backbone.in_channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(
                f"{self.name} takes images (batch, height, width, {channels}), got {images.shape}: "
                "put channels last, or load it with in_chans=N for other channels"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"{self.name} takes normalised floats, got {images.dtype}: use model.normalize(images)")
