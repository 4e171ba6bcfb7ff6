"""Extracts features from batches of images, whatever the network."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np


def extract(
    apply: Callable[[np.ndarray], Mapping[str, jax.Array]], batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Runs a network over batches and returns its outputs as host arrays, padding left out.

    One batch is in flight while the previous one is copied to the host.

    Args:
      apply: maps images `(batch, height, width, channels)` to named outputs `(batch, ...)`; jit it, for one shape.
        The outputs must be readable from this process (replicated on several hosts).
      batches: each has "images"; optionally "valid" `(batch,)` bool, False on padding; every other entry, such as
        "labels" `(batch,)`, is returned beside the outputs.

    Returns:
      Arrays `(samples, ...)` by name: the outputs as float32, the other entries in their own dtype.

    Raises:
      ValueError: when there is no batch.
    """
    parts: list[dict[str, np.ndarray]] = []
    pending = None
    for batch in batches:
        outputs = apply(batch["images"])
        if pending is not None:
            parts.append(_to_host(*pending))
        pending = (batch, outputs)
    if pending is None:
        raise ValueError("extract: there is no batch; check the path and the split of the evaluation data")
    parts.append(_to_host(*pending))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _to_host(batch: Mapping[str, np.ndarray], outputs: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Copies one batch's outputs and extra entries to the host, valid samples only."""
    valid = np.asarray(batch.get("valid", np.ones(len(batch["images"]), bool)))
    extras = {name: np.asarray(array)[valid] for name, array in batch.items() if name not in ("images", "valid")}
    return extras | {name: np.asarray(array, np.float32)[valid] for name, array in outputs.items()}
