"""Exports a network with its weights to one file that runs without this code: `python -m dino_jax.export`.

There is no ONNX: the maintained converter, jax2onnx 0.17, does not convert scanned Flax modules.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dino_jax import command, model_options
from dino_jax.data.shards import write_whole
from dino_jax.metrics import write_json_atomic
from dino_jax.models import Extractor

PLATFORMS = ("cpu", "cuda", "tpu")
# The container of the format is a FlatBuffer, whose offsets have 31 bits.
MOST_BYTES = 2**31 - 2**26
# How far the outputs of the file may be from those of the model, relative to their largest.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}

EPILOG = """\
The file needs JAX alone:

  import jax
  model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
  features = model.call(images)  # float32 (batch, height, width, channels) in [0, 1], in red, green, blue

Any batch size; the image size is fixed. Features are "cls" (batch, dim), "registers" (batch, registers, dim) and
"patches" (batch, rows, columns, dim). Before it is written, the file is read back and run beside the model on random
images.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exports; returns the exit code of `command.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m dino_jax.export",
        description="Export a network with its weights as StableHLO.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model_options.add_model(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="such as model.stablehlo")
    parser.add_argument("--size", type=int, nargs="+", default=[224], metavar="PX", help="side, or height and width")
    parser.add_argument("--platforms", nargs="+", default=list(PLATFORMS), choices=(*PLATFORMS, "rocm"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the differences there")
    options = parser.parse_args(arguments)
    return command.run(lambda: start(options))


def start(options: argparse.Namespace) -> None:
    """Loads the model, exports it and says how far the file is from it."""
    command.only_our_lines()
    if len(options.size) > 2:
        raise ValueError(f"--size takes a side, or height and width, got {len(options.size)} numbers")
    model = model_options.load_model(options)
    numbers = to_stablehlo(
        model, options.out, height=options.size[0], width=options.size[-1], platforms=tuple(options.platforms)
    )
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.0f} MiB, for {', '.join(options.platforms)}")
    print("largest difference to the model: " + ", ".join(f"{n.split('/')[1]} {v:.1e}" for n, v in numbers.items()))
    if options.json:
        write_json_atomic(options.json, numbers)


def to_stablehlo(
    model: Extractor, path: str | Path, *, height: int, width: int, platforms: tuple[str, ...] = PLATFORMS
) -> dict[str, float]:
    """Writes a network with its weights as a serialised `jax.export.Exported`, see the module's help.

    Args:
      model: the network.
      path: the file.
      height, width: of the images in pixels.
      platforms: on which the file can run.

    Returns:
      By `difference/<output>`, the largest absolute difference between file and model on two random images.

    Raises:
      ValueError: if sizes do not fit the network, it is too large for one file, or the file does not compute the same.
    """
    _check(model, height, width)

    def features(images: Array) -> dict[str, Array]:
        images = (images - jnp.asarray(model.mean)) / jnp.asarray(model.std)
        return {name: tokens.astype(jnp.float32) for name, tokens in model(images).items()}

    channels = model.backbone.in_channels
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, height, width, channels), jnp.float32)
    exported = jax.export.export(jax.jit(features), platforms=platforms)(images)
    try:
        serialized = exported.serialize()
    except ImportError:
        raise ValueError("export needs flatbuffers: pip install 'dino_jax[export]'") from None
    numbers = _compare(model, features, serialized, (2, height, width, channels))
    write_whole(Path(path), lambda file: file.write(serialized))
    return numbers


def _check(model: Extractor, height: int, width: int) -> None:
    patch = model.patch_size
    if min(height, width) < patch or height % patch or width % patch:
        raise ValueError(f"image size {height} x {width} does not fit {model.name}: take multiples of {patch}")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    if size > MOST_BYTES:
        raise ValueError(
            f"{model.name} has {size / 2**30:.1f} GiB of weights, one file holds less than 2 GiB: load it in bfloat16"
        )


def _compare(model: Extractor, features: Any, serialized: bytearray, shape: tuple[int, ...]) -> dict[str, float]:
    """Runs the file beside the model.

    Raises:
      ValueError: if they differ.
    """
    images = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
    ours = jax.jit(features)(images)
    theirs = jax.export.deserialize(serialized).call(images)
    numbers = {}
    for name, expected in ours.items():
        if not expected.size:
            continue
        difference = float(jnp.abs(theirs[name] - expected).max())
        tolerance = TOLERANCE[jnp.dtype(model.backbone.dtype).name] * max(1.0, float(jnp.abs(expected).max()))
        if not difference <= tolerance:
            raise ValueError(f"the exported {name} differ by {difference:.1e} from the model's: nothing was written")
        numbers[f"difference/{name}"] = difference
    return numbers


if __name__ == "__main__":
    sys.exit(main())
