"""Where every array lives: one mesh, one table from parameter paths to mesh axes, one rule for batches.

Mesh axes are named here and nowhere else. "data" replicates the state, "fsdp" splits it; both split the batch.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Suffix of a leaf's path -> mesh axis of each dimension. Kernels are split by rows: reducing their gradients then
# becomes a reduce-scatter, where a thin slice of the minor dimension would still be all-reduced.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"blocks/depthwise/kernel", (None, None, None, None, "fsdp")),
    (r"blocks/.*/kernel", (None, "fsdp", None)),
    (r"\w*conv\d?/kernel", (None, None, None, "fsdp")),
    (r"patch_embed/kernel", (None, None, None, "fsdp")),
    (r"(mlp_\d+|prototypes)/kernel", ("fsdp", None)),
    (r"(bias|scale|mean|var|gamma|gain|cls_token|registers|mask_token|pos_embed)", ()),
    (r"centers/(dino|ibot)", ()),
    (r"(step|count|last_layer_count|skipped|skipped_in_row)", ()),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, devices: list[Any] | None = None) -> Mesh:
    """Lays the devices out as (data, fsdp).

    Args:
      data: devices along "data".
      fsdp: devices along "fsdp". One of the two may be -1: it takes all that are left.

    Raises:
      ValueError: if the shape does not use all devices, or splits the state across TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    given = data if fsdp == -1 else fsdp
    left = len(devices) // given if given > 0 else 0
    shape = (data, left) if fsdp == -1 else (left if data == -1 else data, fsdp)
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh.data = {data} and mesh.fsdp = {fsdp} do not use the {len(devices)} devices: "
            "set one of them to -1 and the other to a divisor of their number"
        )
    return Mesh(_layout(shape, devices), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def _layout(shape: tuple[int, int], devices: list[Any]) -> np.ndarray:
    """Arranges devices; several TPU slices lie along the first axis, which needs the network least."""
    # GPUs have slices too, one per host, but a network between them that parameters may cross.
    slices = len({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ValueError(
            f"mesh.data = {shape[0]} does not cover {slices} slices: set mesh.data={slices} and mesh.fsdp=-1"
        )
    inside = (shape[0] // slices, shape[1])
    return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1), devices, allow_split_physical_axes=True)


def data_shards(mesh: Mesh) -> int:
    """Returns into how many parts a batch is split."""
    return math.prod(mesh.shape.values())


def state_shards(mesh: Mesh) -> int:
    """Returns into how many parts the state is split."""
    return mesh.shape["fsdp"]


def batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of anything with a leading batch axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of something every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def of_state(state: Any, mesh: Mesh) -> Any:
    """Returns the tree of shardings of a train state (or any part of it), from the table `RULES`.

    Where the axis does not divide a dimension, the other one of a kernel's rows and columns is split instead; where it
    divides neither, the array is kept whole.

    Raises:
      ValueError: if no rule matches a leaf.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _of_leaf(path_name(path), leaf.shape, mesh), state)


def _of_leaf(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    for pattern, axes in RULES:
        if re.search(rf"(^|/){pattern}$", path):
            return NamedSharding(mesh, PartitionSpec(*_fitting(axes, shape, mesh)))
    raise ValueError(f"no sharding rule covers {path}: add one to dino_jax.sharding.RULES")


def _fitting(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> list[str | None]:
    """Returns which mesh axis splits each dimension, as a rule says or, where it does not divide that dimension, the
    next of the last two that it divides; an axis that divides none is left out."""
    fitting: list[str | None] = [None] * len(axes)
    for dimension, axis in enumerate(axes):
        if axis is None:
            continue
        # Rows and columns only: blocks are scanned one by one, and kernels of convolutions are small.
        others = [other for other in (len(axes) - 1, len(axes) - 2) if axes[other] is None]
        divided = [d for d in (dimension, *others) if shape[d] % mesh.shape[axis] == 0]
        if divided:
            fitting[divided[0]] = axis
    return fitting


def path_name(path: tuple[Any, ...]) -> str:
    """Spells a tree path with slashes, as in "student/backbone/blocks/attn/qkv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf of a tree by its path."""
    return {path_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def place(batch_arrays: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this process's part of a batch, split over all devices along the first axis."""
    where = batch(mesh)
    return {name: jax.make_array_from_process_local_data(where, x) for name, x in batch_arrays.items()}


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """Returns what a tree of array shapes takes on one device under the given shardings."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)


def place_whole(array: Any, mesh: Mesh) -> jax.Array:
    """Makes a global array, split over all devices along the first axis, of one that every process holds whole."""
    return jax.make_array_from_callback(array.shape, batch(mesh), lambda index: array[index])
