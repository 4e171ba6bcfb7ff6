"""Exports a network with its weights to one file that runs without this code: `python -m dino_jax.export`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dino_jax import command, export_onnx, model_options
from dino_jax.data.whole import write_json, write_whole
from dino_jax.models import Extractor

PLATFORMS = ("cpu", "cuda", "tpu")
# The container of the format is a FlatBuffer, whose offsets have 31 bits.
MOST_BYTES = 2**31 - 2**26
# How far the outputs of the file may be from those of the model, relative to their largest.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
BATCHES = (1, 2)  # on which they are compared

EPILOG = """\
A file that ends in .onnx is an ONNX model (needs jax2onnx, float32 only), with the input "images". Any other is
StableHLO, which runs with JAX and flatbuffers alone:

  import jax
  model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
  features = model.call(images)  # float32 (batch, height, width, channels) in [0, 1], in red, green, blue

Any batch size; the image size is fixed. Features are "cls" (batch, dim), "patches" (batch, rows, columns, dim)
and, where the network has any, "registers" (batch, registers, dim). Before it is written, the file is read back and
run beside the model on random images.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exports; returns the exit code of `command.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m dino_jax.export",
        description="Export a network with its weights as StableHLO or ONNX.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model_options.add_weights(parser, dtypes=tuple(TOLERANCE))
    model_options.add_channels(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="file to write, such as model.stablehlo or model.onnx"
    )
    text = "side of the images, or height and width (default 224)"
    parser.add_argument("--size", type=int, nargs="+", default=[224], metavar="PX", help=text)
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=(*PLATFORMS, "rocm"),
        help=f"platforms of a StableHLO file (default {' '.join(PLATFORMS)})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the differences to this file")
    options = parser.parse_args(arguments)
    return command.run(lambda: start(options))


def start(options: argparse.Namespace) -> None:
    """Loads the model, exports it and says how far the file is from it."""
    command.only_our_lines()
    command.check_output(options.json)
    command.check_output(options.out)
    if len(options.size) > 2:
        raise ValueError(f"--size takes a side, or height and width, got {len(options.size)} numbers")
    model = model_options.load_model(options)
    height, width = options.size[0], options.size[-1]
    if options.out.suffix == ".onnx":
        if options.platforms:
            raise ValueError("--platforms is for StableHLO: an ONNX file runs wherever its runtime does")
        numbers, where = to_onnx(model, options.out, height=height, width=width), "ONNX"
    else:
        platforms = tuple(options.platforms or PLATFORMS)
        numbers = to_stablehlo(model, options.out, height=height, width=width, platforms=platforms)
        where = f"for {', '.join(platforms)}"
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.0f} MiB, for images of {height} x {width}, {where}")
    print("largest difference to the model: " + ", ".join(f"{n.split('/')[1]} {v:.1e}" for n, v in numbers.items()))
    if options.json:
        write_json(options.json, numbers)


def to_stablehlo(
    model: Extractor, path: str | Path, *, height: int, width: int, platforms: tuple[str, ...] = PLATFORMS
) -> dict[str, float]:
    """Writes a network with its weights as a serialised `jax.export.Exported`, see the module's help.

    Args:
      model: the network.
      path: the file.
      height, width: of the images in pixels.
      platforms: on which the file can run, this machine's among them.

    Returns:
      By `difference/<output>`, the largest absolute difference between file and model on random images.

    Raises:
      ValueError: if sizes do not fit the network, it is too large for one file, this machine cannot run it, or the
        file does not compute the same.
    """
    _check(model, height, width, halving='use --dtype bfloat16 (in Python, load it with dtype="bfloat16"), or ')
    here = jax.export.default_export_platform()
    if here not in platforms:
        raise ValueError(f"the file is compared with the model on this machine: add {here} to --platforms")
    features = _features(model)
    shape = (height, width, model.backbone.in_channels)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    exported = jax.export.export(jax.jit(features), platforms=platforms)(images)
    try:
        serialized = exported.serialize()
    except ImportError:
        raise ValueError("export needs flatbuffers: pip install -e '.[export]'") from None
    numbers = _compare(model, features, jax.export.deserialize(serialized).call, shape)
    write_whole(Path(path), lambda file: file.write(serialized))
    return numbers


def to_onnx(model: Extractor, path: str | Path, *, height: int, width: int) -> dict[str, float]:
    """Writes a float32 network with its weights as an ONNX model; see `to_stablehlo`, also for what it returns.

    Raises:
      ValueError: as there, or if the network is not float32 or cannot be converted.
    """
    _check(model, height, width)
    if model.backbone.dtype != jnp.float32:
        raise ValueError(f"ONNX files are float32, {model.name} computes in {jnp.dtype(model.backbone.dtype).name}")
    features = _features(model)
    shape = (height, width, model.backbone.in_channels)
    serialized = export_onnx.convert(features, shape)
    numbers = _compare(model, features, lambda images: export_onnx.run(serialized, np.asarray(images)), shape)
    write_whole(Path(path), lambda file: file.write(serialized))
    return numbers


def _features(model: Extractor) -> export_onnx.Features:
    """Returns the function that is exported: from images in [0, 1] to float32 features, empty ones left out."""

    def features(images: Array) -> dict[str, Array]:
        features = model(model.normalize(images))
        return {name: tokens.astype(jnp.float32) for name, tokens in features.items() if tokens.size}

    return features


def _check(model: Extractor, height: int, width: int, *, halving: str = "") -> None:
    """Makes sure that a network takes such images and fits into a file; `halving` says how to store it in half.

    Raises:
      ValueError: if not.
    """
    patch = model.patch_size
    if min(height, width) < patch or height % patch or width % patch:
        raise ValueError(f"image size {height} x {width} does not fit {model.name}: use multiples of {patch}")
    leaves = jax.tree.leaves(model.params)
    size, halved = sum(leaf.nbytes for leaf in leaves), 2 * sum(leaf.size for leaf in leaves)
    if size > MOST_BYTES:
        fix = f"{halving if halved <= MOST_BYTES else ''}use a smaller network"
        raise ValueError(
            f"{model.name} has {size / 2**30:.1f} GiB of weights, but one file holds less than 2 GiB: {fix}"
        )


def _compare(
    model: Extractor, features: export_onnx.Features, exported: Callable, shape: tuple[int, int, int]
) -> dict[str, float]:
    """Runs what was exported beside the model, on batches of several sizes.

    Raises:
      ValueError: if they differ.
    """
    program, random = jax.jit(features), np.random.default_rng(0)
    numbers: dict[str, float] = {}
    for batch in BATCHES:
        images = jnp.asarray(random.random((batch, *shape), np.float32))
        theirs = exported(images)
        for name, expected in program(images).items():
            difference = float(np.abs(np.asarray(theirs[name]) - np.asarray(expected)).max())
            tolerance = TOLERANCE[jnp.dtype(model.backbone.dtype).name] * max(1.0, float(jnp.abs(expected).max()))
            if not difference <= tolerance:
                raise ValueError(
                    f"the exported {name} differ by {difference:.1e} from the model's: nothing was written"
                )
            numbers[f"difference/{name}"] = max(difference, numbers.get(f"difference/{name}", 0.0))
    return numbers


if __name__ == "__main__":
    sys.exit(main())
