"""Reads a recipe from the command line: `--config FILE[:variant]` and `--config.key=value`."""

import ast
import contextlib
import difflib
import inspect
import math
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

ALL_PHASES = "phases.all."
PER_CHANNEL = ("data.mean", "data.std")  # as many numbers as images have channels
OWN = ("steps", "snapshot_steps", "snapshot_every")  # of a phase: normally different in each


def load(config: str, overrides: dict[str, str]) -> ConfigDict:
    """Runs `get_config` (with the variant, if one is given) of a recipe file and applies the overrides.

    Args:
      config: "FILE" or "FILE:variant".
      overrides: text values by dotted key, `{"phases.gram.steps": "100"}`; "phases.all.KEY" is that of every phase.

    Raises:
      ValueError: for a missing file, a file that is not a recipe or has a mistake, an unknown key (with the nearest) or
        a wrong type.
    """
    path, _, variant = config.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: there is no such file; the recipes are in configs/")
    try:
        get_config = runpy.run_path(path).get("get_config")
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: it is not a recipe, which is a Python file ({error})") from None
    except Exception as error:
        raise _mistake(path, error) from error
    if get_config is None:
        raise ValueError(f"--config {path}: it defines no get_config(), so it is not a recipe")
    if variant and not inspect.signature(get_config).parameters:
        raise ValueError(f"--config {config}: the recipe has no variants, use {path}")
    try:
        built = get_config(variant) if variant else get_config()
    except ValueError:  # a recipe's own words
        raise
    except Exception as error:  # whatever a mistake in it raises: ml_collections names the nearest of unknown keys
        raise _mistake(path, error) from error
    if not isinstance(built, ConfigDict):
        kind = type(built).__name__
        raise ValueError(f"--config {path}: get_config returns {kind}, not a configuration: end it with `return c`")
    for key, text in overrides.items():
        for each in _keys(built, key):
            override(built, each, text)
    return built.lock()


def _keys(config: ConfigDict, key: str) -> list[str]:
    """Returns the keys that a key stands for."""
    if not key.startswith(ALL_PHASES):
        return [key]
    return [f"phases.{name}.{key.removeprefix(ALL_PHASES)}" for name in config.phase_order]


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Puts the key of a recipe before what a ValueError raised inside says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def left_behind(config: str, overrides: dict[str, str]) -> list[str]:
    """Lists settings that were overridden in one phase and keep their old value in others, in case all were meant.

    Args:
      config, overrides: as `load`.
    """
    before, after = flatten(load(config, {})), flatten(load(config, overrides))
    lines = []
    for key in overrides:
        _, name, *rest = key.split(".") if key.startswith("phases.") else ("", "", "")
        own = ".".join(rest)
        if name not in after["phase_order"] or own in OWN or after[key] == before[key]:
            continue
        for other in after["phase_order"]:
            twin = f"phases.{other}.{own}"
            if other != name and twin not in overrides and before[twin] == before[key]:
                lines.append(f"{twin} stays {after[twin]!r}; --config.{ALL_PHASES}{own} sets it in all phases")
    return lines


def _mistake(path: str, error: Exception) -> ValueError:
    """Says in a line what a recipe raised, and where in its file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f", line {lines[-1]}" if lines else ""
    words = " ".join(str(error).split()).strip("'\"")
    return ValueError(f"--config {path}{where}: {type(error).__name__}: {words}")


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
        nearest = _nearest(key, list(flat))
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else "; --keys lists all of them"
        raise ValueError(f"--config.{key}: there is no such key{hint}")
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    try:
        value = _parse(text, flat[key], any_number=key in PER_CHANNEL)
    except (ValueError, TypeError, SyntaxError):
        kind = type(flat[key]).__name__
        raise ValueError(f"--config.{key}={text}: expected {kind}, such as {flat[key]!r}") from None
    node[name] = value


def _nearest(key: str, known: list[str]) -> list[str]:
    """Finds what was meant: a group instead of a key, a key without its groups, or one that is spelt alike."""
    last = key.split(".")[-1]
    return (
        [name for name in known if name.startswith(f"{key}.")][:3]
        or [name for name in known if name.endswith(f".{key}")][:2]
        or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        or [name for name in known if name.split(".")[-1] == last][:2]
        or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    )


def _parse(text: str, current: Any, *, any_number: bool = False) -> Any:
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
        return _finite(float(text))
    value = ast.literal_eval(text)
    if isinstance(current, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
        return _like(value, current, any_number=any_number)
    return value


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError
    return number


def _like(value: tuple[Any, ...], current: tuple[Any, ...], *, any_number: bool) -> tuple[Any, ...]:
    """Makes a tuple's elements of the type of the present ones; of floats, such as ranges, the number is fixed."""
    if current and isinstance(current[0], float):
        if len(value) != len(current) and not any_number:
            raise ValueError
        return tuple(_finite(float(element)) for element in value)
    if not all(isinstance(element, type(current[0]) if current else int | float | tuple) for element in value):
        raise ValueError
    return value
