"""Tells whether two sources hold the same images, without reading all of them."""

import hashlib
from typing import Any

from dino_jax.data.decode import BadImage
from dino_jax.data.sources import Source
from dino_jax.data.subset import evenly

SAMPLED = 8  # images whose pixels tell sources apart that have the same names

Fingerprint = dict[str, Any]
"""Digests of a source: "names", and "samples", where an image that cannot be used has None."""


def fingerprint(source: Source) -> Fingerprint:
    """Returns a digest of the names of all images of a source, and those of the pixels and labels of a few."""
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(f"{source.name(index)}\n".encode("utf-8", "surrogateescape"))
    samples: list[str | None] = []
    for index in evenly(len(source), SAMPLED):
        try:
            sample = source[index]
        except BadImage:
            samples.append(None)
        else:
            content = sample["image"].tobytes() + str(sample["label"]).encode()
            samples.append(hashlib.sha256(content).hexdigest()[:16])
    return {"names": names.hexdigest(), "samples": samples}


def same_images(before: Any, now: Fingerprint) -> bool:
    """Tells whether two fingerprints, the first out of a file, are of the same images, perhaps mended since."""
    if not isinstance(before, dict) or before.get("names") != now["names"]:
        return False
    return all(was in (None, is_now) for was, is_now in zip(before["samples"], now["samples"], strict=False))
