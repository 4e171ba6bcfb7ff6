"""The backbone that a run starts from: drawn from the seed, or released or earlier weights to continue with."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dino_jax import agreement, sharding
from dino_jax.models import VARIANTS, inflate_patch_embed
from dino_jax.state import Networks, Params

# Reads weights from a path: (model with the attributes `name`, `backbone`, `mean` and `std`, weights in the form of
# `state.teacher_weights`), on the host.
Load = Callable[[str], tuple[Any, Params]]
# Options that change no function a trained network computes: how it is trained, and how it runs.
FREE = (
    *("name", "parent", "drop_path", "drop_path_ramp", "layer_scale", "shards", "remat", "attention", "dtype"),
    *("rope_shift", "rope_jitter", "rope_rescale"),
    *("pos_offset", "pos_antialias"),  # how positions are resized, in which the libraries differ for the same weights
    "norm_epsilon",  # the libraries differ in this too; each is negligible beside the variance of trained features
)


def drawn(networks: Networks, mesh: Mesh, *, seed: int) -> Params:
    """Returns the backbone that `state.init` draws from a seed, as `state.teacher_weights` does."""

    def draw() -> Params:
        return networks.backbone_weights(jax.random.key(seed))

    return jax.jit(draw, out_shardings=sharding.of_state(jax.eval_shape(draw), mesh))()


def loaded(
    weights: str, networks: Networks, mesh: Mesh, *, load: Load, statistics: tuple[Sequence[float], Sequence[float]]
) -> Params:
    """Reads a backbone's weights to where they belong on the mesh, in the form of `state.teacher_weights`.

    The first layer of weights for three channels is spread over the run's channels, see `models.inflate_patch_embed`.

    Args:
      weights: file or folder that `load` reads.
      load: `pretrained.load_on_host`, or anything like it.
      statistics: mean and standard deviation by which the run normalises images.

    Raises:
      ValueError: when there is nothing at `weights`, or it is of another architecture than the run's, or for images of
        other statistics.
    """
    check_path(weights)
    model, params = load(weights)
    backbone, channels = networks.backbone, networks.backbone.in_channels
    if model.backbone.in_channels == 3 != channels:
        check_architecture(weights, model, backbone.clone(in_channels=3))
        params = inflate_patch_embed(params, channels)
    else:
        check_architecture(weights, model, backbone)
        check_statistics(weights, model, statistics)
    shapes = jax.eval_shape(networks.backbone_weights, jax.random.key(0))
    check_parameters(weights, model.name, params, shapes)
    if jax.process_count() > 1:  # each reads its own file
        agreement.check({"the weights in init.weights": host_checksums(params)})

    def place(x: Any, s: Any) -> jax.Array:
        array = np.asarray(x, np.float32)
        return jax.make_array_from_callback(array.shape, s, lambda index: array[index])

    return jax.tree.map(place, params, sharding.of_state(shapes, mesh))


def host_checksums(params: Params) -> list[tuple[str, int]]:
    """Returns the path and the checksum of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(sharding.path_name(path), zlib.crc32(np.ascontiguousarray(x).view(np.uint8))) for path, x in leaves]


def check_path(weights: str) -> None:
    """Raises ValueError when there is nothing at `weights`."""
    if not Path(weights).expanduser().exists():
        raise ValueError(f"init.weights = {weights!r}: not found; set it to the file or folder of the weights")


def check_architecture(weights: str, model: Any, expected: Any) -> None:
    """Raises ValueError when the loaded model's options are others than those of the run's backbone."""
    problem = f"init.weights = {weights!r} looks like {model.name}, not like config.model"
    kind = f"variant {model.name}" if model.name in VARIANTS else "variant of their generation"
    fix = f"choose the recipe's {kind}, or other weights"
    if type(model.backbone) is not type(expected):
        raise ValueError(f"{problem} (a {type(expected).__name__}): {fix}")
    names = [field.name for field in dataclasses.fields(expected) if field.name not in FREE]
    options = {name: (getattr(model.backbone, name), getattr(expected, name)) for name in names}
    different = {name: pair for name, pair in options.items() if pair[0] != pair[1]}
    published = VARIANTS.get(model.name, {})
    # Where the recipe has what is published under this name, or nothing is, only its options can be changed.
    settable = all(None not in pair for pair in different.values())
    if settable and all(published.get(name, ours) == ours for name, (_, ours) in different.items()):
        fix = "set " + " ".join(f"--config.model.{name}={theirs}" for name, (theirs, _) in different.items())
    if different:
        name, (theirs, ours) = next(iter(different.items()))
        raise ValueError(f"{problem}: model.{name} is {theirs!r} there and {ours!r} here: {fix}")


def check_statistics(weights: str, model: Any, statistics: tuple[Sequence[float], Sequence[float]]) -> None:
    """Raises ValueError when the run normalises images otherwise than the weights were trained with."""
    theirs = tuple(model.mean), tuple(model.std)
    if not np.allclose(theirs, statistics, rtol=0, atol=1e-4):
        mean, std = (",".join(f"{value:g}" for value in values) for values in theirs)
        raise ValueError(
            f"init.weights = {weights!r} takes images of mean {mean} and deviation {std}, not of the run's: "
            f"set --config.data.mean={mean} --config.data.std={std}"
        )


def check_parameters(weights: str, name: str, params: Params, expected: Params) -> None:
    """Raises ValueError when arrays are missing, left over or of another shape."""
    theirs, ours = sharding.shapes_by_path(params), sharding.shapes_by_path(expected)
    different = sorted(path for path in theirs.keys() | ours.keys() if theirs.get(path) != ours.get(path))
    if different:
        path = different[0]
        raise ValueError(
            f"init.weights = {weights!r} ({name}) does not fit config.model: {path} is {theirs.get(path, 'absent')} "
            f"there and {ours.get(path, 'absent')} here; choose the recipe's variant of that name, or other weights"
        )
