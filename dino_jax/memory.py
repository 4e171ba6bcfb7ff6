"""Checks, before anything is allocated, that a run's arrays fit on the devices."""

import math
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import build, sharding, state
from dino_jax.state import Networks

GIB = 2**30


def check(config: ConfigDict, networks: Networks, mesh: Mesh) -> None:
    """Compares what the largest phase needs at least with what a device has.

    Counted are the state, the gradients and the crops of a batch, not the activations: a run that passes may still not
    fit, one that fails cannot.

    Raises:
      ValueError: stating both figures, and what would make it fit.
    """
    for name in config.phase_order:
        needed = at_least(config, config.phases[name], networks, mesh)
        available = per_device(mesh.local_devices[0])
        if available is not None and needed > available:
            devices = math.prod(mesh.shape.values())
            raise ValueError(
                f"phase {name!r} needs at least {needed / GIB:.1f} GiB per device (state, gradients, crops) on "
                f"{devices} device{'s' * (devices > 1)} with mesh.fsdp={sharding.state_shards(mesh)}, and a device has "
                f"{available / GIB:.1f} GiB: use more devices with a larger mesh.fsdp, or a smaller model or batch"
            )


def at_least(config: ConfigDict, phase: ConfigDict, networks: Networks, mesh: Mesh) -> int:
    """Returns a lower bound, in bytes per device, on what a phase needs."""
    gram = phase.gram.teacher != "none"
    shapes = state.abstract(networks, build.optimizer(phase), gram=gram)
    shardings = sharding.of_state(shapes, mesh)
    whole = sharding.bytes_per_device(shapes, shardings)
    gradients = sharding.bytes_per_device(shapes.student, shardings.student)
    return whole + gradients + crop_bytes(config, phase) // sharding.data_shards(mesh)


def crop_bytes(config: ConfigDict, phase: ConfigDict) -> int:
    """Returns the bytes of a batch's float32 crops, over all devices."""
    crops = phase.crops
    pixels = 2 * crops.global_size**2 + crops.local_number * crops.local_size**2 + 2 * phase.gram.crop_size**2
    return phase.batch_size * pixels * config.model.in_channels * np.dtype(np.float32).itemsize


def per_device(device: Any) -> int | None:
    """Returns the bytes a device can hold, None when it does not say; CPU devices share the machine's memory."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return stats.get("bytes_limit")
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(jax.local_devices())
    return None
