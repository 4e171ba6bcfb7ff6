"""The command-line options by which a command gets its model and its images, and what they stand for."""

import argparse
import dataclasses
import functools

from dino_jax.data.decode import decode
from dino_jax.data.deep import decode_deep
from dino_jax.data.sources import Source, open_path
from dino_jax.models import Extractor


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds --weights, --model, --in-chans, --mean and --std."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="a run's workdir, a checkpoint or snapshot of it, released weights, or random:NAME",
    )
    parser.add_argument("--model", metavar="NAME", help="the architecture, where the weights do not say it")
    parser.add_argument("--in-chans", type=int, default=3, metavar="N", help="channels of the images")
    for name, what in (("--mean", "means"), ("--std", "standard deviations")):
        text = f"{what} of each channel, the largest sample being 1 (default: those of the weights)"
        parser.add_argument(name, type=float, nargs="+", metavar="X", help=text)


def load_model(options: argparse.Namespace) -> Extractor:
    """Loads the model that the options of `add_model` name.

    Raises:
      ValueError: for weights that cannot be loaded, or statistics that do not fit the channels.
    """
    from dino_jax import pretrained

    pretrained.check_path(options.weights)
    first = options.model or options.weights
    weights = options.weights if options.model else None
    model, _ = pretrained.load(first, weights=weights, in_chans=options.in_chans)
    given = {name: getattr(options, name) for name in ("mean", "std") if getattr(options, name)}
    for name, values in given.items():
        if len(values) != options.in_chans:
            raise ValueError(f"--{name} has {len(values)} numbers for {options.in_chans} channels: give one for each")
    if min(given.get("std", [1.0])) <= 0:
        raise ValueError(f"--std must be positive, got {min(given['std'])}")
    mean, std = (tuple(given.get(name, getattr(model, name))) for name in ("mean", "std"))
    return dataclasses.replace(model, mean=mean, std=std)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds --images and --bits."""
    parser.add_argument(
        "--images", required=True, metavar="PATH", help="a folder, a file, a tar or tar.gz, ArrayRecord, or packaged"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        help="what the network sees of each sample (default 8 for three channels, else 16)",
    )


def open_images(options: argparse.Namespace) -> Source:
    """Opens the images that the options of `add_images` name, in the channels of those of `add_model`."""
    if options.bits == 8 and options.in_chans != 3:
        raise ValueError(f"--bits 8 reads RGB only, not {options.in_chans} channels: take --bits 16")
    deep = options.bits == 16 or options.in_chans != 3
    return open_path(
        options.images, decode=functools.partial(decode_deep, channels=options.in_chans) if deep else decode
    )
