"""ResNet (arXiv 1512.03385) in torchvision's layout, as DINO trains it (arXiv 2104.14294, section 4.1)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from dino_jax.models.stages import STATS, to_tokens

EXPANSION = 4  # of a bottleneck's last convolution
EPSILON, MOMENTUM = 1e-5, 0.1  # PyTorch's defaults for BatchNorm: the new statistics enter the running ones by a tenth
# Kaiming's for ReLU, by the outputs: torchvision's choice.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch computes it, statistics in float32 or finer.

    In training it normalises by the batch it is given; on several devices that is the whole batch, as with
    synchronised BatchNorm. It moves the running statistics, the collection "batch_stats", where that is mutable.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalises `(batch, height, width, channels)`."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        if train:
            mean = x.mean((0, 1, 2))
            variance = jnp.square(x - mean).mean((0, 1, 2))
            self.update(mean, variance, count=x.size // channels)
        else:
            mean, variance = (running.value for running in self.running(channels))
        return ((x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + bias).astype(self.dtype)

    def running(self, channels: int) -> tuple[Any, Any]:
        """Returns the variables of the running mean and variance, each `(channels,)`."""
        if not (self.has_variable(STATS, "mean") or self.is_mutable_collection(STATS)):
            raise ValueError("evaluation needs running statistics: apply to {'params': ..., 'batch_stats': ...}")
        mean = self.variable(STATS, "mean", jnp.zeros, (channels,))
        return mean, self.variable(STATS, "var", jnp.ones, (channels,))

    def update(self, mean: Array, variance: Array, count: int) -> None:
        """Moves the running statistics towards those of a batch of `count` positions."""
        if not self.is_mutable_collection(STATS):
            return
        running_mean, running_variance = self.running(len(mean))
        if self.is_initializing():
            return
        # PyTorch keeps the unbiased variance.
        variance = variance * (count / max(count - 1, 1))
        for running, new in ((running_mean, mean), (running_variance, variance)):
            running.value = (1 - MOMENTUM) * running.value + MOMENTUM * lax.stop_gradient(new)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a skip connection, which the first of a stage projects."""

    width: int
    stride: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `(batch, height, width, channels)` to `(batch, height / stride, width / stride, 4 * width)`."""
        y = nn.relu(BatchNorm(self.dtype, name="norm1")(conv(self.width, 1, 1, self.dtype, "conv1")(x), train))
        y = conv(self.width, 3, self.stride, self.dtype, "conv2")(y)
        y = nn.relu(BatchNorm(self.dtype, name="norm2")(y, train))
        y = conv(EXPANSION * self.width, 1, 1, self.dtype, "conv3")(y)
        y = BatchNorm(self.dtype, name="norm3")(y, train)
        if self.project:
            x = conv(EXPANSION * self.width, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = BatchNorm(self.dtype, name="shortcut_norm")(x, train)
        return nn.relu(x + y)


class Stem(nn.Module):
    """7x7 convolution and maximum of 3x3, each with stride 2."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `(batch, height, width, channels)` to `(batch, height / 4, width / 4, width)`, sides rounded up."""
        x = nn.relu(BatchNorm(self.dtype, name="norm")(conv(self.width, 7, 2, self.dtype, "conv")(x), train))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def conv(features: int, side: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    """Builds a convolution without bias, padded by half its side."""
    return nn.Conv(
        features,
        (side, side),
        strides=stride,
        padding=side // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


class ResNet(nn.Module):
    """ResNet of bottlenecks, called like `VisionTransformer`, with running statistics beside the parameters:
    `model.apply({"params": p, "batch_stats": s}, {"global": images})`, and in training
    `out, changed = model.apply(..., train=True, mutable=["batch_stats"])`.

    In training every group of crops is normalised by its own statistics, and each moves the running ones in turn, as
    in DINO (where the teacher, too, normalises by its batches). Without `mutable`, training leaves them as they are. It
    has neither registers nor a mask token: masks are accepted and do nothing.

    Attributes:
      depths: bottlenecks of each stage.
      channels: of the stem; stage i has 4 * channels * 2 ** i.
    """

    depths: tuple[int, ...]
    channels: int
    in_channels: int
    dtype: Any = jnp.float32

    @property
    def width(self) -> int:
        """Channels of the last map, the features' width."""
        return EXPANSION * self.channels * 2 ** (len(self.depths) - 1)

    @property
    def patch_size(self) -> int:
        """Pixels from one patch of the last map to the next."""
        return 4 * 2 ** (len(self.depths) - 1)

    def grid(self, image_size: tuple[int, ...], layer: int = -1) -> tuple[int, int]:
        """Returns rows and columns of a stage's map for an image of `image_size` (height, width) pixels."""
        stride = 4 * 2 ** (layer % len(self.depths))
        height, width = image_size
        return -(-height // stride), -(-width // stride)

    @nn.compact
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
          groups: by name, normalised images `(batch, height, width, in_channels)`; a side that is not a multiple of the
            patch is rounded up to one.
          masks: without effect, see above.
          train: normalise by the batch.
          collect: also return the output of every stage.

        Returns:
          By name: "cls" `(batch, dim)`, the mean patch, "registers" `(batch, 0, dim)`, "patches" and "prenorm" `(batch,
          patches, dim)`, row-major; with `collect`, "stages", a list of maps `(batch, height, width, channels)`.

        Raises:
          ValueError: if there are no running statistics to evaluate with.
        """
        del masks
        stem = Stem(self.channels, self.dtype, name="stem")
        maps = {name: stem(images.astype(self.dtype), train) for name, images in groups.items()}
        stages = []
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                first = index == 0
                stride = 2 if first and stage else 1
                width = self.channels * 2**stage
                block = Bottleneck(width, stride, first, self.dtype, name=f"stages_{stage}_{index}")
                maps = {name: block(x, train) for name, x in maps.items()}
            stages.append(maps)
        out: dict[str, dict[str, Any]] = {name: self.final_norm(to_tokens(x)) for name, x in maps.items()}
        if collect:
            out = {name: out[name] | {"stages": [maps[name] for maps in stages]} for name in out}
        return out

    def final_norm(self, tokens: dict[str, Array]) -> dict[str, Array]:
        """Returns what `to_tokens` returns with the patches as "prenorm" too: there is no norm at the end."""
        return tokens | {"prenorm": tokens["patches"]}
