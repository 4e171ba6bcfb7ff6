"""Our own format: an Orbax checkpoint of the parameters, and a small JSON file that says what they are."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dino_jax.weights.files import ARRAYS, FACTS, replacing
from dino_jax.weights.network import Flat, Tree, flatten


def is_ours(path: Path) -> bool:
    """Says whether a folder was written by `write`."""
    return (path / FACTS).exists() and (path / ARRAYS).is_dir()


def write(path: Path, tree: Tree, facts: Mapping[str, Any]) -> None:
    """Writes a tree of arrays and the facts about it as a folder, which appears when it is complete.

    Raises:
      ValueError: when it cannot be written.
    """
    tree = {key: part for key, part in tree.items() if part}
    with replacing(path) as folder:
        folder.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / ARRAYS).resolve(), tree)
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def read(path: Path) -> tuple[Flat, dict[str, Any]]:
    """Reads what `write` wrote; returns the arrays by path and the facts.

    Raises:
      ValueError: when it is damaged.
    """
    try:
        facts = json.loads((path / FACTS).read_text())
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{path / FACTS} is damaged, it is not JSON: write the weights again")
    return flatten(read_tree(path / ARRAYS)), facts


def read_tree(folder: Path, parts: Sequence[tuple[str, ...]] = ((),)) -> Tree:
    """Reads a tree of arrays, or the parts of it at some paths, to the host.

    Raises:
      ValueError: when it is damaged, or has no such parts.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # Orbax remarks on every read
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            there = checkpointer.metadata(folder.resolve()).item_metadata.tree
            wanted: Tree = {}
            for part in parts:
                _graft(wanted, there, part)
            options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=options, partial_restore=True)
            return checkpointer.restore(folder.resolve(), args=arguments)
    except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"the arrays in {folder} are damaged or incomplete ({text}): write them again") from None
    finally:
        logger.setLevel(level)


def _graft(target: Tree, tree: Mapping[str, Any], part: tuple[str, ...]) -> None:
    """Copies what is at the path `part` of a tree to the same path of another."""
    for key in part[:-1]:
        tree, target = tree[key], target.setdefault(key, {})
    if part:
        target[part[-1]] = tree[part[-1]]
    else:
        target.update(tree)
