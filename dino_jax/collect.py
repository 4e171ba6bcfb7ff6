"""Runs a function over many batches on all devices, and brings what it returns to the host."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from dino_jax import sharding
from dino_jax.data.reading import Batch

Features = dict[str, np.ndarray]


def collect(
    apply: Callable[[Any], Mapping[str, Array]],
    batches: Iterable[Batch],
    *,
    mesh: Mesh,
    advance: Callable[[int], Any] = lambda images: None,
) -> Features:
    """Runs a function over batches and returns its outputs on the host, padding left out.

    One batch is in flight while the previous one is copied to the host.

    Args:
      apply: maps images `(batch, height, width, channels)` to named outputs `(batch, ...)` that this process can read.
      batches: this process's rows, as `read_batches` yields them; every entry but "images" and "valid" is returned too.
      advance: is told how many images each batch had.

    Returns:
      Arrays `(images, ...)` by name, the outputs as float32; nothing when there is no batch.
    """
    parts: list[Features] = []
    pending: tuple[dict[str, Any], Mapping[str, Array]] | None = None
    for batch in batches:
        outputs = apply(sharding.place({"images": batch["images"]}, mesh)["images"])
        extras: dict[str, Any] = {name: array for name, array in batch.items() if name != "images"}
        if mesh.is_multi_process:  # the rows of the other processes, in the order of the outputs
            extras = _everywhere(sharding.replicated(mesh))(sharding.place(extras, mesh))
        if pending is not None:
            parts.append(_to_host(*pending, advance))
        pending = (extras, outputs)
    if pending is not None:
        parts.append(_to_host(*pending, advance))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def of_images(apply: Callable[[Array], Array], images: np.ndarray, *, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Runs a function over images that every process holds, and returns its output float32 `(images, ...)` on the host.

    The last batch is filled up with its last image. One batch is in flight while the previous one is copied.

    Args:
      apply: maps images `(batch, height, width, channels)` to an array `(batch, ...)` that this process can read.
      batch_size: images at once, rounded up to a multiple of the devices; for fewer images, the next power of two, so
        that few sizes are compiled.
    """
    size = min(batch_size, 1 << (len(images) - 1).bit_length())
    size += -size % sharding.data_shards(mesh)
    parts: list[np.ndarray] = []
    pending: Array | None = None
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        running = apply(sharding.place_whole(padded, mesh))
        if pending is not None:
            parts.append(np.asarray(pending, np.float32))
        pending = running
    return np.concatenate([*parts, np.asarray(pending, np.float32)])[: len(images)]


@functools.lru_cache(maxsize=2)
def _everywhere(where: NamedSharding) -> Any:
    return jax.jit(lambda arrays: arrays, out_shardings=where)


def _to_host(extras: Mapping[str, Any], outputs: Mapping[str, Array], advance: Callable[[int], Any]) -> Features:
    valid = np.asarray(extras["valid"])
    kept = {name: np.asarray(array)[valid] for name, array in extras.items() if name != "valid"}
    kept |= {name: np.asarray(array, np.float32)[valid] for name, array in outputs.items()}
    advance(int((np.asarray(extras["ids"]) >= 0).sum()))
    return kept
