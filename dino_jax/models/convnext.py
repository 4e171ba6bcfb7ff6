"""ConvNeXt (arXiv 2201.03545) as DINOv3 distils it (arXiv 2508.10104, section 6.1): CLS is the mean of the last map."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from dino_jax.models import layers
from dino_jax.models.stages import to_tokens

EPSILON = 1e-6  # of every LayerNorm, as published


class Block(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, MLP of four times the width and LayerScale, around a skip connection."""

    width: int
    layer_scale: float
    dtype: Any

    @nn.compact
    def __call__(self, groups: dict[str, Array]) -> tuple[dict[str, Array], None]:
        """Maps each group's map `(batch, height, width, channels)`; returns (groups, None), as a scan wants."""
        depthwise = nn.Conv(
            self.width,
            (7, 7),
            padding=3,
            feature_group_count=self.width,
            dtype=self.dtype,
            kernel_init=layers.normal_init,
            name="depthwise",
        )
        norm = layers.norm("layernorm", epsilon=EPSILON, dtype=self.dtype, name="norm")
        mlp = layers.Mlp(self.width, 4 * self.width, bias=True, dtype=self.dtype, name="mlp")
        scale = layers.LayerScale(self.layer_scale, self.dtype, name="ls") if self.layer_scale else lambda x: x
        return {name: x + scale(mlp(norm(depthwise(x)))) for name, x in groups.items()}, None


class Downsample(nn.Module):
    """Shrinks a map by a convolution without overlap: by 4 and then normed (the stem), or normed and then by 2."""

    width: int
    stem: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `(batch, height, width, channels)` to `(batch, height // 4 or 2, width // 4 or 2, width)`."""
        norm = layers.norm("layernorm", epsilon=EPSILON, dtype=self.dtype, name="norm")
        side = 4 if self.stem else 2
        conv = nn.Conv(
            self.width,
            (side, side),
            strides=side,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=layers.normal_init,
            name="conv",
        )
        return norm(conv(x)) if self.stem else conv(norm(x))


class Stage(nn.Module):
    """Shrinks the maps, then runs `depth` blocks, stacked on a leading axis and scanned."""

    width: int
    depth: int
    stem: bool
    layer_scale: float
    dtype: Any

    @nn.compact
    def __call__(self, groups: dict[str, Array]) -> dict[str, Array]:
        """Maps each group's map `(batch, height, width, channels)`."""
        downsample = Downsample(self.width, self.stem, self.dtype, name="downsample")
        groups = {name: downsample(x) for name, x in groups.items()}
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            check_constancy_invariants=False,  # it traces every block twice
        )
        groups, _ = scanned(self.width, self.layer_scale, self.dtype, name="blocks")(groups)
        return groups


class ConvNext(nn.Module):
    """DINOv3 ConvNeXt, called like `VisionTransformer`: named groups of crops share one pass over the weights.

    It has no registers and no mask token: masks are accepted and do nothing, as in the reference. Training and
    evaluation are the same. Published sizes are in `variants.CONVNEXT_VARIANTS`.

    Attributes:
      depths: blocks of each stage.
      widths: channels of each stage.
      layer_scale: initial gain of LayerScale; 0 has none.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    layer_scale: float
    in_channels: int
    dtype: Any = jnp.float32

    @property
    def width(self) -> int:
        """Channels of the last map, the features' width."""
        return self.widths[-1]

    @property
    def patch_size(self) -> int:
        """Pixels from one patch of the last map to the next."""
        return 4 * 2 ** (len(self.widths) - 1)

    def grid(self, image_size: tuple[int, ...], layer: int = -1) -> tuple[int, int]:
        """Returns rows and columns of a stage's map for an image of `image_size` (height, width) pixels."""
        stride = 4 * 2 ** (layer % len(self.widths))
        height, width = image_size
        return height // stride, width // stride

    def setup(self):
        self.stages = [
            Stage(width, depth, index == 0, self.layer_scale, self.dtype)
            for index, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True))
        ]
        self.norm = layers.norm("layernorm", epsilon=EPSILON, dtype=self.dtype, name="norm")

    def __call__(
        self,
        groups: Mapping[str, Array],
        masks: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
        collect: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Computes the tokens of every crop group.

        Args:
          groups: by name, normalised images `(batch, height, width, in_channels)`. What a side exceeds a multiple of a
            stage's stride by is cut off.
          masks, train: without effect, see above.
          collect: also return the output of every stage.

        Returns:
          By name: "cls" `(batch, dim)`, the mean patch, "registers" `(batch, 0, dim)` and "patches" `(batch, patches,
          dim)`, row-major, all after the final norm; "prenorm" `(batch, patches, dim)`; with `collect`, "stages", a
          list of maps `(batch, height, width, channels)`, before the norm.

        Raises:
          ValueError: if an image is smaller than one patch.
        """
        del masks, train
        for images in groups.values():
            if min(images.shape[1:3]) < self.patch_size:
                raise ValueError(
                    f"image size {images.shape[1:3]} is below the {self.patch_size} px of a patch: enlarge it"
                )
        maps = {name: images.astype(self.dtype) for name, images in groups.items()}
        stages = []
        for stage in self.stages:
            maps = stage(maps)
            stages.append(maps)
        out: dict[str, dict[str, Any]] = {name: self.final_norm(to_tokens(x)) for name, x in maps.items()}
        if collect:
            out = {name: out[name] | {"stages": [maps[name] for maps in stages]} for name in out}
        return out

    def final_norm(self, tokens: dict[str, Array]) -> dict[str, Array]:
        """Applies the norm to what `to_tokens` returns; adds the patches before it as "prenorm"."""
        return {name: self.norm(x) for name, x in tokens.items()} | {"prenorm": tokens["patches"]}
