"""Checks, before anything is allocated, that a run's arrays fit on the devices."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import build, sharding, state
from dino_jax.state import Networks

GIB = 2**30


def check(config: ConfigDict, networks: Networks, mesh: Mesh) -> None:
    """Compares what each phase needs at least with what a device has.

    Counted are the state, the gradients, the crops of a batch and the input of every block, which the backward pass
    needs with any `remat`. A run that passes may still not fit, one that fails cannot.

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
                f"and a device has {available / GIB:.1f} GiB: use more devices with a larger mesh.fsdp, or a smaller "
                "model or batch"
            )


def at_least(config: ConfigDict, phase: ConfigDict, networks: Networks, mesh: Mesh) -> int:
    """Returns a lower bound, in bytes per device, on what a phase needs."""
    gram = phase.gram.teacher != "none"
    shapes = state.abstract(networks, build.optimizer(phase), gram=gram, centered=build.centered(config))
    shardings = sharding.of_state(shapes, mesh)
    whole = sharding.bytes_per_device(shapes, shardings)
    gradients = sharding.bytes_per_device(shapes.student, shardings.student)
    per_batch = crop_bytes(config, phase) + block_input_bytes(config, phase)
    return whole + gradients + per_batch // sharding.data_shards(mesh)


def block_input_bytes(config: ConfigDict, phase: ConfigDict) -> int:
    """Returns the bytes of the student's tokens before each block, over all devices; 0 without such blocks."""
    model, crops = config.model, phase.crops
    if "heads" not in model:
        return 0
    sides = [crops.global_size] * 2 + [crops.local_size] * crops.local_number
    tokens = sum(1 + model.registers + (side // model.patch_size) ** 2 for side in sides)
    return phase.batch_size * tokens * model.width * model.depth * jnp.dtype(config.precision).itemsize


def crop_bytes(config: ConfigDict, phase: ConfigDict) -> int:
    """Returns the bytes of a batch's float32 crops, over all devices."""
    crops = phase.crops
    pixels = 2 * crops.global_size**2 + crops.local_number * crops.local_size**2 + 2 * phase.gram.crop_size**2
    return phase.batch_size * pixels * config.model.in_channels * np.dtype(np.float32).itemsize


def per_device(device: jax.Device) -> int | None:
    """Returns the bytes a device can hold, None when it does not say; CPU devices share the memory of this process."""
    if device.platform == "cpu":
        return of_process() // len(jax.local_devices())
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None


def of_process() -> int:
    """Returns the bytes that this process may use: the machine's memory, or the limit of its container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *cgroup_limits()])


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Lists the memory limits of the control groups (Linux, version 1 or 2) that this process is in; none elsewhere."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    files: set[Path] = set()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A limit holds for all groups below; inside a container the path may be the host's, and the root its own.
        own = base / path.lstrip("/")
        files |= {folder / name for folder in (own, *own.parents) if folder.is_relative_to(base)}
    texts = [file.read_text().strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdecimal()]
