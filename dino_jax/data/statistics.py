"""Mean and standard deviation of each channel of a set of images, by which networks normalise them."""

import numpy as np

from dino_jax.data.decode import BadImage
from dino_jax.data.reading import why
from dino_jax.data.sources import Source
from dino_jax.data.subset import evenly

MEASURED = 256  # images, spread evenly


def channel_statistics(source: Source) -> tuple[list[float], list[float]]:
    """Measures (means, standard deviations) of the channels over the pixels of some images, scaled to [0, 1].

    Every image counts alike, whatever its size; those that cannot be used are left out.

    Raises:
      ValueError: when none can be used, or a channel is the same everywhere.
    """
    means, squares = [], []
    for index in evenly(len(source), MEASURED):
        try:
            image = source[index]["image"]
        except BadImage:
            continue
        pixels = image.reshape(-1, image.shape[2]) / np.iinfo(image.dtype).max
        means.append(pixels.mean(0))
        squares.append((pixels**2).mean(0))
    if not means:
        raise ValueError(f"none of the images that were tried can be used, such as {source.name(0)}: {why(source, 0)}")
    mean = np.mean(means, axis=0)
    deviation = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 0))
    if not deviation.all():
        raise ValueError(f"channel {np.argmin(deviation) + 1} of {len(deviation)} is the same everywhere: leave it out")
    return mean.tolist(), deviation.tolist()
