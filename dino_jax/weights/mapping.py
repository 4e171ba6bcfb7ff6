"""Runs a layout's table in either direction, and accounts for every tensor on both sides."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dino_jax.weights.files import StateDict, same_bits
from dino_jax.weights.layouts import Layout, Options
from dino_jax.weights.manifest import Manifest
from dino_jax.weights.network import Flat
from dino_jax.weights.rules import ABSENT, Place, Rule

Shapes = Mapping[str, tuple[int, ...]]

ROUNDED = 2**-7  # buffers may have been stored as bfloat16


@dataclasses.dataclass(frozen=True)
class Converted:
    """Tensors on one side, and the account of how they came to be.

    Attributes:
      tensors: parameters by path, or tensors by their name there.
      aside: what the other side has no place for, by its name here: our parameters when writing; buffers that differ
        from ours, such as rounded RoPE periods, when reading.
    """

    tensors: Flat
    aside: Flat
    manifest: Manifest


def to_ours(state: StateDict, layout: Layout, shapes: Shapes, options: Options, *, given: StateDict) -> Converted:
    """Converts a checkpoint to parameters by path.

    Args:
      shapes: of all parameters that are wanted.
      given: parameters that are known already, because the layout could not hold them; they must agree with what it
        does hold.

    Raises:
      ValueError: when a buffer, or something given, does not belong to these weights. What is missing, unused or of a
        wrong shape is not raised but stands in the manifest, as `Manifest.problem` says.
    """
    manifest = Manifest(layout.name)
    for path, array in given.items():
        if array.shape != shapes.get(path):
            raise ValueError(f"what is kept beside the checkpoint is of another network: {path}; remove it")
    params: Flat = {}
    used: set[str] = set()
    for rule, place in applicable(layout, shapes):
        paths = rule.paths(place)
        if any(path in params for path in paths) and not rule.duplicate:
            continue
        converted = _rule_to_ours(rule, place, state, {path: shapes[path] for path in paths}, manifest, used)
        _check_duplicate(rule, params, converted)
        params |= converted
        if any(path in given for path in paths):
            params |= _checked_given(rule, place, params, given, state, manifest)
    _fill(params, shapes, state, given, manifest)
    aside = _buffers_read(state, layout, options, manifest, used)
    for name, array in state.items():
        if name in used:
            continue
        if any(re.fullmatch(pattern, name) for pattern in layout.kept):
            aside[name] = array
            manifest.add("buffer", theirs=(name,), their_shapes=(array.shape,), note="kept, of no effect")
        else:
            reason = next((why for pattern, why in layout.skipped.items() if re.fullmatch(pattern, name)), "")
            reason = reason if array.size else "empty"
            kind = "skipped" if reason else "unused"
            manifest.add(kind, theirs=(name,), their_shapes=(array.shape,), note=reason)
    return Converted(params, aside, manifest)


def to_theirs(params: Flat, layout: Layout, options: Options, *, leftover: Flat, drop: str = "") -> Converted:
    """Converts parameters by path to a checkpoint.

    Args:
      leftover: buffers by name that take the place of those that follow from the options.
      drop: pattern of names that this checkpoint does without, besides those the layout never has.
    """
    manifest = Manifest(layout.name)
    state: Flat = {}
    written: set[str] = set()
    lost: set[str] = set()
    for rule, place in applicable(layout, params):
        paths = rule.paths(place)
        if rule.duplicate or not written.intersection(paths):
            lost |= _rule_to_theirs(rule, place, params, state, drop, manifest)
            written.update(paths)
    for name, make in _buffers(layout, options):
        state[name] = leftover.get(name, make)
        manifest.add("buffer", theirs=(name,), their_shapes=(state[name].shape,), note="follows from the options")
    for name in leftover:
        if any(re.fullmatch(pattern, name) for pattern in layout.kept):
            state[name] = leftover[name]
            manifest.add("buffer", theirs=(name,), their_shapes=(state[name].shape,), note="kept, of no effect")
    lost |= set(params) - written
    for path in sorted(lost):
        manifest.add("kept", ours=(path,), our_shapes=(params[path].shape,), note="beside, this layout cannot hold it")
    return Converted(state, {path: params[path] for path in sorted(lost)}, manifest)


def applicable(layout: Layout, paths: Mapping[str, Any]) -> Iterator[tuple[Rule, Place]]:
    """Yields the rules about parameters that are among `paths`, with every place where they apply."""
    for rule in layout.rules:
        for place in rule.places():
            if all(path in paths for path in rule.paths(place)):
                yield rule, place


def _rule_to_ours(
    rule: Rule, place: Place, state: StateDict, shapes: Shapes, manifest: Manifest, used: set[str]
) -> Flat:
    """Converts what one line says; what cannot be is left out and stands in the manifest."""
    paths = list(shapes)
    blocks = shapes[paths[0]][0] if rule.stacked else 1
    ours = tuple(shape[1:] if rule.stacked else shape for shape in shapes.values())
    dtype = next(iter(state.values())).dtype
    like = rule.to_theirs([np.zeros(shape, dtype) for shape in ours])
    columns: list[list[np.ndarray]] = []
    for block in range(blocks):
        names = rule.names(place, block)
        used.update(names)
        there = [(name, state[name]) for name in names if name in state]
        absent = [name for name, may in zip(names, rule.may_lack, strict=True) if name not in state and not may]
        if rule.duplicate and absent:
            continue
        for name in absent:
            template = like[names.index(name)].shape
            manifest.add("missing", theirs=(name,), ours=tuple(paths), their_shapes=(template,), our_shapes=ours)
        wrong = [(name, x) for name, x in there if x.shape != like[names.index(name)].shape]
        for name, x in wrong:
            template = like[names.index(name)].shape
            manifest.add("misshapen", theirs=(name,), their_shapes=(x.shape,), our_shapes=(template,))
        if absent or wrong:
            continue
        columns.append(rule.to_ours([state.get(name, empty) for name, empty in zip(names, like, strict=True)]))
        kind, note = ("duplicate", "another name of it") if rule.duplicate else ("matched", rule.word())
        if not there:
            kind, note = "zero", "absent there, as it may be"
        there_names, their_shapes = tuple(name for name, _ in there), tuple(x.shape for _, x in there)
        manifest.add(kind, theirs=there_names, ours=tuple(paths), their_shapes=their_shapes, our_shapes=ours, note=note)
    if len(columns) < blocks:
        return {}
    stacked = [
        _stacked(column) if rule.stacked else np.ascontiguousarray(column[0]) for column in zip(*columns, strict=True)
    ]
    return dict(zip(paths, stacked, strict=True))


def _stacked(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks the tensors of all blocks; those of different types, such as float16 and bfloat16, as float32."""
    mixed = len({block.dtype for block in blocks}) > 1
    return np.stack([block.astype(np.float32) for block in blocks] if mixed else blocks)


def _rule_to_theirs(rule: Rule, place: Place, params: Flat, state: Flat, drop: str, manifest: Manifest) -> set[str]:
    """Converts what one line says into `state`; returns the paths that could not be restored from there."""
    paths = rule.paths(place)
    lost: set[str] = set()
    for block in range(len(params[paths[0]]) if rule.stacked else 1):
        ours = [params[path][block] if rule.stacked else params[path] for path in paths]
        theirs = rule.to_theirs(ours)
        names = rule.names(place, block)
        kept = [name != ABSENT and not (drop and re.fullmatch(drop, name)) for name in names]
        if not all(kept) or rule.codec.word.startswith("position"):
            back = rule.to_ours([x if keep else np.zeros_like(x) for x, keep in zip(theirs, kept, strict=True)])
            lost |= {path for path, old, new in zip(paths, ours, back, strict=True) if not same_bits(old, new)}
        written = {name: x for name, x, keep in zip(names, theirs, kept, strict=True) if keep}
        state |= written
        manifest.add(
            "duplicate" if rule.duplicate else "matched" if written else "zero",
            theirs=tuple(written),
            ours=tuple(paths),
            their_shapes=tuple(x.shape for x in written.values()),
            our_shapes=tuple(x.shape for x in ours),
            note=rule.word() if written else "absent there, as it may be",
        )
    return lost


def _check_duplicate(rule: Rule, params: Flat, converted: Flat) -> None:
    for path, array in converted.items():
        if rule.duplicate and path in params and not same_bits(params[path], array):
            raise ValueError(
                f"{' and '.join(rule.theirs)} should be a second name of another tensor, but differs: {path}"
            )


def _checked_given(
    rule: Rule, place: Place, params: Flat, given: StateDict, state: StateDict, manifest: Manifest
) -> Flat:
    """Returns what is given of a line's parameters, once it is sure that the checkpoint could have come from it."""
    paths = rule.paths(place)
    both = {**params, **given}
    if any(path not in both for path in paths):
        return {}
    chosen = {path: both[path] for path in paths}
    for block in range(len(chosen[paths[0]]) if rule.stacked else 1):
        theirs = rule.to_theirs([x[block] if rule.stacked else x for x in chosen.values()])
        for name, array in zip(rule.names(place, block), theirs, strict=True):
            if name in state and not same_bits(array, state[name]):
                raise ValueError(f"what is kept beside the checkpoint is of other weights: {name} differs; remove it")
    for path in sorted(given.keys() & chosen.keys()):
        manifest.add("kept", ours=(path,), our_shapes=(chosen[path].shape,), note="beside the checkpoint")
    return chosen


def _fill(params: Flat, shapes: Shapes, state: StateDict, given: StateDict, manifest: Manifest) -> None:
    """Adds what the checkpoint cannot hold: what is given, and a mask token of zeros, as it is before training."""
    reported = {path for row in manifest.rows for path in row.ours}
    for path in shapes:
        if path in params or path in reported:
            continue
        if path in given:
            params[path] = given[path]
            manifest.add("kept", ours=(path,), our_shapes=(given[path].shape,), note="beside the checkpoint")
        elif path == "mask_token":
            params[path] = np.zeros(shapes[path], next(iter(state.values())).dtype)
            manifest.add("zero", ours=(path,), our_shapes=(shapes[path],), note="only training needs it")
        else:
            manifest.add("missing", ours=(path,), our_shapes=(shapes[path],))


def _buffers(layout: Layout, options: Options) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and content of every buffer that the layout has for these options."""
    for pattern, make in layout.buffers.items():
        content = make(options)
        if content is not None:
            for block in range(options["depth"] if "{i}" in pattern else 1):
                yield pattern.format(i=block), content


def _buffers_read(state: StateDict, layout: Layout, options: Options, manifest: Manifest, used: set[str]) -> Flat:
    """Checks the buffers of a checkpoint; returns those that are not bit for bit what the options give."""
    differing: Flat = {}
    for name, content in _buffers(layout, options):
        if name not in state:
            continue
        used.add(name)
        there, note = state[name], "follows from the options"
        if there.shape != content.shape or not np.allclose(there.astype(np.float32), content, rtol=ROUNDED, atol=0):
            raise ValueError(
                f"buffer {name} {there.shape} is not what this architecture has: name another, "
                "or give its options (rope_base=X)"
            )
        if not same_bits(there, content):
            differing[name] = there
            worst = float(np.abs(there.astype(np.float32) / np.where(content, content, 1) - content.astype(bool)).max())
            note += f"; there rounded by up to {worst:.1e}, here exact"
        manifest.add("buffer", theirs=(name,), their_shapes=(there.shape,), note=note)
    return differing
