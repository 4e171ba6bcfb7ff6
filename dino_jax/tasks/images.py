"""What tasks on whole images share: the options of the feature extraction, features, and images as they are shown."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.data.decode import BadImage
from dino_jax.data.fit import fit
from dino_jax.data.sources import Source
from dino_jax.evals.features import check_finite
from dino_jax.extraction import Features, extract_features
from dino_jax.models import Extractor
from dino_jax.pictures.colors import visible

SIDE = 160  # pixels of an image in a picture
GREY = 128


def add_extraction_arguments(parser: argparse.ArgumentParser, *, size: int = 224) -> None:
    """Adds the options of the feature extraction, with the default of --size."""
    parser.add_argument("--size", type=int, default=size, metavar="PIXELS", help="side of the images")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch, over all devices")
    text = "folder that keeps features, and heads in training, to continue after a stop; delete it if images change "
    text += "under their old names"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=text)


def extracted(
    model: Extractor, source: Source, options: argparse.Namespace, *, progress: bool = True, **settings: Any
) -> Features:
    """Extracts features as the options say; `settings` are others of `extraction.extract_features`.

    Raises:
      ValueError: when a feature is not finite, and as `extract_features`.
    """
    found = extract_features(
        model,
        source,
        size=options.size,
        batch_size=options.batch_size,
        cache=options.cache,
        progress=progress,
        **settings,
    )
    for values in found.values():
        check_finite(values, f"the features of {model.name}")
    return found


def check_complete(source: Source, features: Features) -> None:
    """Raises ValueError unless there are features of every image of a source."""
    if len(features["ids"]) < len(source):
        missing = min(set(range(len(source))) - set(features["ids"].tolist()))
        raise ValueError(f"{source.name(missing)} cannot be read: replace it, as the scores count on every image")


def picture_of(source: Source, index: int) -> np.ndarray:
    """Returns an image as it is shown, uint8 `(SIDE, SIDE, 3)`; grey in place of one that cannot be read any more."""
    try:
        return visible(fit(source[int(index)]["image"], size=SIDE))
    except BadImage:
        return np.full((SIDE, SIDE, 3), GREY, np.uint8)
