"""Keeps a head while it is trained, so that the same command continues after a stop."""

import argparse
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dino_jax.command import check_output_folder
from dino_jax.data.whole import write_whole
from dino_jax.extraction import digest, identity
from dino_jax.models import Extractor

SECONDS = 60.0  # between two writings, which is what a stop can cost
SHARE = 0.02  # of the time that writing may take: heads of many classes are large
NOT_OF_THE_HEAD = ("out", "json", "cache", "weights", "given", "split", "test", "pixels", "eigen_crop")  # options


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says where."""
    text = "folder that keeps the head while it is trained, to continue after a stop; delete it if images or maps "
    text += "change under their old names"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=text)


class Kept:
    """The newest state of one training, in a file of a cache; without a cache, nothing is kept.

    Attributes:
      step: completed steps of the state that an earlier process left; 0 without one.
    """

    def __init__(self, model: Any, data: Callable[[], Any], options: argparse.Namespace):
        """Looks for what an earlier process left.

        Args:
          model: gives the features that the head is trained on.
          data: returns what tells the training data from others, as JSON.
          options: of the task, with its cache.
        """
        self._path = None
        if options.cache is not None:
            network = identity(model) if isinstance(model, Extractor) else [model.name, model.patch_size]
            chosen = {key: str(value) for key, value in vars(options).items() if key not in NOT_OF_THE_HEAD}
            key = digest([network, data(), chosen])[:16]
            self._path = options.cache.expanduser() / f"head-{key}.npz"
            check_output_folder(self._path.parent)
        self._arrays = _read(self._path) if self._path is not None and self._path.exists() else {}
        self.step = int(self._arrays.get("step", 0))
        self._due = time.monotonic() + SECONDS
        if self.step:
            print(f"the head continues after step {self.step}, from {self._path}", file=sys.stderr)

    def restored(self, new: Any) -> Any:
        """Returns the tree of arrays that was kept after `step` steps, or `new`, of the same structure."""
        if not self.step:
            return new
        leaves, structure = jax.tree.flatten(new)
        kept = [self._arrays[str(place)] for place in range(len(leaves))]
        self._arrays = {}  # heads of many classes are large
        found = [jnp.asarray(x) if isinstance(leaf, Array) else x for leaf, x in zip(leaves, kept, strict=True)]
        return jax.tree.unflatten(structure, found)

    def keep(self, step: int, state: Any, *, last: bool = False) -> None:
        """Writes a tree of arrays if that is due, or if this was the last step."""
        started = time.monotonic()
        if self._path is None or not (last or started >= self._due):
            return
        leaves = {str(place): leaf for place, leaf in enumerate(jax.device_get(jax.tree.leaves(state)))}
        write_whole(self._path, lambda file: np.savez(file, step=step, **leaves))  # type: ignore[arg-type]
        ended = time.monotonic()
        self._due = ended + max(SECONDS, (ended - started) / SHARE)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Reads a kept head; says on stderr when it is damaged, and returns nothing."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged ({' '.join(str(error).split())}): the head is trained anew", file=sys.stderr)
        return {}
