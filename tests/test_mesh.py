"""How devices are laid out: any shape that uses them all, and slices along the data axis."""

from types import SimpleNamespace

import jax
import pytest

from dino_jax import sharding


@pytest.mark.parametrize("shape", [{"data": -1, "fsdp": 1}, {"data": 1, "fsdp": -1}, {"data": 1, "fsdp": 1}])
def test_one_device_fits_every_shape(shape):
    mesh = sharding.make_mesh(**shape, devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("shape", [(2, 1), (-1, 2), (2, -1), (-1, -1), (0, -1), (-1, 0), (1, 0)])
def test_a_shape_that_does_not_use_the_devices_is_refused(shape):
    with pytest.raises(ValueError, match=r"do not use the 1 devices: set one of them to -1"):
        sharding.make_mesh(data=shape[0], fsdp=shape[1], devices=jax.devices()[:1])


def slices_of(count: int, size: int, platform: str = "tpu") -> list[SimpleNamespace]:
    """Stands in for the devices of several TPU slices, or GPU hosts."""
    shared = {"device_kind": "stand-in", "platform": platform, "core_on_chip": 0}
    return [
        SimpleNamespace(id=i, slice_index=i // size, process_index=i, coords=(i % size, 0, 0), **shared)
        for i in range(count * size)
    ]


def test_parameters_are_split_inside_a_slice_only():
    layout = sharding._layout((2, 4), slices_of(2, 4))
    assert [{device.slice_index for device in row} for row in layout] == [{0}, {1}]
    layout = sharding._layout((4, 2), slices_of(2, 4))
    assert [{device.slice_index for device in row} for row in layout] == [{0}, {0}, {1}, {1}]


def test_splitting_parameters_across_slices_is_refused():
    with pytest.raises(ValueError, match=r"does not cover 2 slices: set mesh.data=2 and mesh.fsdp=-1"):
        sharding._layout((1, 8), slices_of(2, 4))


def test_parameters_may_be_split_across_gpu_hosts():
    assert sharding._layout((1, 8), slices_of(2, 4, platform="gpu")).shape == (1, 8)
