"""Checks, before anything is allocated, that a run's arrays fit on the devices."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import build, host_memory, sharding, state
from dino_jax.data.crops import GLOBAL_NUMBER
from dino_jax.host_memory import GIB
from dino_jax.models import Backbone, VisionTransformer
from dino_jax.phases import by_size
from dino_jax.state import Networks


def check(config: ConfigDict, networks: Networks, mesh: Mesh) -> None:
    """Compares what each phase needs at least with what a device has.

    It counts the state, the gradients, the crops of a batch and the input of every block, which the backward pass needs
    with any `remat`. A run that passes may still not fit; one that fails cannot.

    Raises:
      ValueError: stating both figures, and what would make it fit.
    """
    for name in config.phase_order:
        needed = at_least(config, config.phases[name], networks, mesh)
        available = per_device(mesh.local_devices[0])
        if available is not None and needed > available:
            devices = math.prod(mesh.shape.values())
            raise ValueError(
                f"phase {name!r} needs at least {needed / GIB:.1f} GiB per device (state, gradients, crops, inputs of "
                f"the blocks) on {devices} device{'s' * (devices > 1)} with mesh.fsdp={sharding.state_shards(mesh)}, "
                f"but a device has {available / GIB:.1f} GiB: use more devices with a larger mesh.fsdp, or a smaller "
                "model or batch"
            )


def at_least(config: ConfigDict, options: ConfigDict, networks: Networks, mesh: Mesh) -> int:
    """Returns a lower bound, in bytes per device, on what a phase needs."""
    gram = options.gram.teacher != "none"
    shapes = state.abstract(networks, build.optimizer(options), gram=gram, centered=build.centered(config))
    shardings = sharding.of_state(shapes, mesh)
    whole = sharding.bytes_per_device(shapes, shardings)
    gradients = sharding.bytes_per_device(shapes.student, shardings.student)
    backbone = networks.backbone
    per_batch = max(crop_bytes(config, sized) + block_input_bytes(backbone, sized) for _, sized in by_size(options))
    return whole + gradients + per_batch // sharding.data_shards(mesh)


def block_input_bytes(backbone: Backbone, options: ConfigDict) -> int:
    """Returns the bytes of the student's tokens before each block, over all devices; 0 without such blocks."""
    if not isinstance(backbone, VisionTransformer):
        return 0
    crops = options.crops
    tokens = GLOBAL_NUMBER * backbone.token_count(crops.global_size)
    tokens += crops.local_number * backbone.token_count(crops.local_size)
    return options.batch_size * tokens * backbone.width * backbone.depth * jnp.dtype(backbone.dtype).itemsize


def crop_bytes(config: ConfigDict, options: ConfigDict) -> int:
    """Returns the bytes of a batch's crops, over all devices."""
    crops, gram_size = options.crops, options.gram.crop_size if options.gram.teacher != "none" else 0
    pixels = GLOBAL_NUMBER * (crops.global_size**2 + gram_size**2) + crops.local_number * crops.local_size**2
    return options.batch_size * pixels * config.model.in_channels * jnp.dtype(config.precision).itemsize


def per_device(device: jax.Device) -> int | None:
    """Returns the bytes a device can hold, None when it does not say; CPU devices share the memory of this process."""
    if device.platform == "cpu":
        return host_memory.of_process() // len(jax.local_devices())
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None
