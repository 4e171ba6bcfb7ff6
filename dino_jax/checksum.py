"""Checksums of arrays, computed where the arrays live: they find damage that a file system passes on silently.

A checksum depends on the values alone, not on how an array is sharded, so a run that continues on another mesh can
check what it restored.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dino_jax import sharding


def checksums(tree: Any) -> Any:
    """Returns a uint32 scalar for every array of a tree.

    On one device, each shape has its own program, which compiles far faster than one for all. Sums that cross devices
    are in one program: several under way could meet in a different order on each device and wait for ever.
    """
    alone = all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(tree) if isinstance(x, Array))
    return jax.tree.map(_checksum, tree) if alone else _checksums(tree)


@jax.jit
def _checksums(tree: Any) -> Any:
    return jax.tree.map(_checksum, tree)


def check(tree: Any, expected: Any) -> None:
    """Compares the arrays of a tree with their checksums.

    Raises:
      ValueError: naming the first array that differs.
    """
    actual = jax.tree_util.tree_leaves_with_path(jax.device_get(checksums(tree)))
    for (path, found), stored in zip(actual, jax.device_get(jax.tree.leaves(expected)), strict=True):
        if found != stored:
            raise ValueError(f"the checksum of {sharding.path_name(path)} is wrong")


@jax.jit
def _checksum(x: Array) -> Array:
    """Sums a hash of every element's bits and position, modulo 2**32, in which the order of the sum is irrelevant."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, stride in enumerate(np.cumprod([1, *x.shape[:0:-1]])[::-1] if x.ndim else ()):
        position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
    # The finaliser of MurmurHash3, after the golden ratio has spread the positions.
    hashed = bits ^ (position * np.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashed = (hashed ^ (hashed >> shift)) * np.uint32(factor)
    return jnp.sum(hashed ^ (hashed >> 16), dtype=jnp.uint32)


def sealed(tree: Any) -> dict[str, Any]:
    """Puts the checksums of a tree of arrays beside it, for saving."""
    return {"content": tree, "checksums": checksums(tree)}


def sealed_like(like: Any) -> dict[str, Any]:
    """Returns what `sealed` would, for a tree of shapes, dtypes and shardings."""

    def scalar(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), np.uint32, sharding=sharding.replicated(x.sharding.mesh))

    return {"content": like, "checksums": jax.tree.map(scalar, like)}


def opened(restored: dict[str, Any]) -> Any:
    """Returns the tree inside of what `sealed` gave; raises ValueError when it is not what was saved."""
    check(restored["content"], restored["checksums"])
    return restored["content"]
