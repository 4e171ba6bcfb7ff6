"""The command-line options by which a command gets its model and its images, and what they stand for."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from dino_jax.data.deep import decoder
from dino_jax.data.reading import darkness
from dino_jax.data.sources import Source, open_path
from dino_jax.models import Extractor


def add_weights(parser: argparse.ArgumentParser, *, dtypes: Sequence[str] = ("float32", "bfloat16")) -> None:
    """Adds --weights, --model, --heads, --mean, --std and --dtype with these choices."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="a run's workdir, a checkpoint or snapshot of it, released weights, or random:NAME",
    )
    parser.add_argument("--model", metavar="NAME", help="architecture that the weights must have")
    parser.add_argument("--heads", type=int, metavar="N", help="number of attention heads, if the weights do not tell")
    for name, what in (("--mean", "means"), ("--std", "standard deviations")):
        text = f"{what} of each channel, for pixels scaled to [0, 1] (default: those of the weights)"
        parser.add_argument(name, type=float, nargs="+", metavar="X", help=text)
    text = "type of parameters and computation; bfloat16 takes half the memory (default float32)"
    parser.add_argument("--dtype", choices=tuple(dtypes), default="float32", help=text)


def add_channels(parser: argparse.ArgumentParser) -> None:
    """Adds --in-chans."""
    parser.add_argument(
        "--in-chans", type=int, metavar="N", help="channels of the images (default: those of the weights)"
    )


def add_bits(parser: argparse.ArgumentParser) -> None:
    """Adds --bits."""
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        help="bits of each sample that the network sees (default: those of the run, else 8 of RGB and 16 of others)",
    )


def load_model(options: argparse.Namespace) -> Extractor:
    """Loads the model named by the options of `add_weights`, and of `add_channels` and `add_bits` if there are any.

    Raises:
      ValueError: for weights that cannot be loaded, or statistics that do not fit the channels.
    """
    from dino_jax import pretrained

    if options.weights in pretrained.VARIANTS and not Path(options.weights).exists():
        raise ValueError(
            f"--weights {options.weights} names an architecture: give the path of weights, or random:{options.weights}"
        )
    given = {name: getattr(options, name) for name in ("in_chans", "mean", "std", "dtype") if hasattr(options, name)}
    given |= {"heads": options.heads} if options.heads is not None else {}
    path = (options.model, options.weights) if options.model else (options.weights,)
    model, _ = pretrained.load(*path, **given)
    bits = getattr(options, "bits", None)
    return dataclasses.replace(model, bits=bits) if bits else model


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds --images and --bits."""
    parser.add_argument(
        "--images",
        required=True,
        metavar="PATH",
        help="folder, file, tar, tar.gz or ArrayRecord; or packaged: the photographs in scikit-image",
    )
    add_bits(parser)


def open_both(options: argparse.Namespace) -> tuple[Source, Extractor]:
    """Opens the images that the options of `add_images` name, then loads the model that the others name.

    Raises:
      ValueError: as `load_model`, or for images that are not there or cannot be read in the model's channels.
    """
    asked = options.in_chans or 3, options.bits or 0
    source = open_images(options, *asked)  # a wrong path is said before weights are read
    model = load_model(options)
    found = model.backbone.in_channels, model.bits
    source = source if found == asked else open_images(options, *found)
    if dark := darkness(source, model.mean):
        print(f"--images {options.images}: {dark}", file=sys.stderr)
    return source, model


def open_images(options: argparse.Namespace, channels: int, bits: int) -> Source:
    """Opens the images that the options of `add_images` name, in so many channels and bits, see `deep.decoder`."""
    try:
        decode = decoder(channels, bits)
    except ValueError as error:
        raise ValueError(f"--bits {bits}: {error}") from None
    return open_path(options.images, decode=decode)
