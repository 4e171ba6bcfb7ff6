"""Reads a recipe from the command line: `--config FILE[:variant]` and `--config.key=value`."""

import ast
import difflib
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


def load(config: str, overrides: dict[str, str]) -> ConfigDict:
    """Runs `get_config` (with the variant, if one is given) of a recipe file and applies the overrides.

    Args:
      config: "FILE" or "FILE:variant".
      overrides: text values by dotted key, `{"phases.gram.steps": "100"}`.

    Raises:
      ValueError: for a missing file, a file that is no recipe, an unknown key (with the nearest) or a wrong type.
    """
    path, _, variant = config.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: there is no such file; the recipes are in configs/")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ValueError(f"--config {path}: it defines no get_config(), so it is not a recipe")
    built = get_config(variant) if variant else get_config()
    for key, text in overrides.items():
        override(built, key, text)
    return built.lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns all values by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets one value from text, read as the type that the key has.

    Raises:
      ValueError: as `load`.
    """
    flat = flatten(config)
    if key not in flat:
        inside = [name for name in flat if name.startswith(f"{key}.")]
        nearest = inside[:3] or difflib.get_close_matches(key, flat, n=1, cutoff=0.4) or _same_ending(key, flat)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else "; --help lists all keys"
        raise ValueError(f"--config.{key}: there is no such key{hint}")
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    try:
        value = _parse(text, flat[key])
    except (ValueError, SyntaxError):
        kind = type(flat[key]).__name__
        raise ValueError(f"--config.{key}={text}: expected {kind}, such as {flat[key]!r}") from None
    node[name] = value


def _same_ending(key: str, flat: dict[str, Any]) -> list[str]:
    """Finds keys with the last part of `key`, whose groups were forgotten (lr.peak of phases.pretrain.schedules)."""
    return [name for name in flat if name.endswith(f".{key}") or name.split(".")[-1] == key.split(".")[-1]][:2]


def _parse(text: str, current: Any) -> Any:
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        choices = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in choices:
            raise ValueError
        return choices[text.lower()]
    if isinstance(current, int):
        return int(text.replace("_", ""))
    if isinstance(current, float):
        return float(text)
    value = ast.literal_eval(text)
    if isinstance(current, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
        if current and not all(_fits(new, current[0]) for new in value):
            raise ValueError
    return value


def _fits(value: Any, example: Any) -> bool:
    """Tells whether a tuple's element has the type of the present ones; an int is a fine float."""
    return isinstance(value, type(example)) or (isinstance(example, float) and isinstance(value, int))
