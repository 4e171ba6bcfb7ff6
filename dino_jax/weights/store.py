"""Reads and writes whole checkpoints: weights with their architecture and statistics, in any layout."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dino_jax.models import VARIANTS, Extractor
from dino_jax.weights import configs, infer, layouts, mapping, orbax, pth_writer, safetensors, statistics
from dino_jax.weights.files import ASIDE, FACTS, check_finite, refuse_existing, replacing
from dino_jax.weights.layouts import LAYOUTS, Layout
from dino_jax.weights.manifest import Manifest
from dino_jax.weights.network import BASES, STATS, Architecture, Flat, Tree, published, unflatten
from dino_jax.weights.source import Checkpoint, check_branch, open_checkpoint

FORMATS = ("orbax", "official", "hf", "timm")


class ManifestError(ValueError):
    """Weights of which something is missing, unused or misshapen; `manifest` says everything."""

    def __init__(self, message: str, manifest: Manifest):
        """Takes the line for the user and the account."""
        super().__init__(message)
        self.manifest = manifest


@dataclasses.dataclass(frozen=True)
class Weights:
    """A backbone's weights and what belongs to them.

    Attributes:
      params: by path, "/"-separated, in the types of the file.
      leftover: buffers of an official file, by name, that are not bit for bit what the architecture gives.
      mean, std: channel statistics of the images it was trained on.
      manifest: how they were read.
      bits: see `Extractor`; known of a run's weights, and of what was written with our json beside it.
    """

    architecture: Architecture
    params: Flat
    leftover: Flat
    mean: tuple[float, ...]
    std: tuple[float, ...]
    manifest: Manifest
    bits: int = 0

    def tree(self) -> Tree:
        """Returns the parameters as nested dicts."""
        return {key: x for key, x in unflatten(self.params).items() if key != STATS}

    def stats(self) -> Tree:
        """Returns a ResNet's running statistics as nested dicts; empty for other networks."""
        return unflatten(self.params).get(STATS, {})

    def extractor(self, dtype: Any) -> Extractor:
        """Returns the network with these weights, both in `dtype`."""
        a = self.architecture
        params, stats = (jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in (self.tree(), self.stats()))
        network = a.with_options(dtype=dtype).build()
        return Extractor(a.name, network, params, self.mean, self.std, batch_stats=stats, bits=self.bits)


def read(path: str | Path, name: str | None = None, *, branch: str = "teacher", **options: Any) -> Weights:
    """Reads a checkpoint of any layout, or our own.

    Args:
      path: see `source.open_checkpoint`; or a folder that `save` wrote in our format.
      name: published architecture that it must be of; None finds out.
      branch: which network of a training checkpoint, "teacher" or "student".
      options: of the network, where neither shapes nor a configuration show them (heads, norm_epsilon, ...).

    Raises:
      ValueError: in one line, when the weights are damaged, incomplete, or of another architecture.
    """
    path = Path(path).expanduser()
    if orbax.is_ours(path):
        check_branch(branch)
        if branch == "student":
            raise ValueError(f"{path} holds one network, not a student beside a teacher: leave branch out")
        ours = _read_ours(path)
        check_heads(ours.architecture.options, options, path)
        changed = dataclasses.replace(ours, architecture=ours.architecture.with_options(**options))
        check_shapes(changed, path)
        return _checked(changed, path, name)
    there = open_checkpoint(path, branch=branch)
    layout = _recognise(there)
    architecture = _architecture(there, layout, options)
    found = mapping.to_ours(there.state, layout, architecture.shapes(), architecture.options, given=there.params)
    found.manifest.rows.extend(there.skipped)
    mean, std = _statistics(there, architecture.options["in_channels"])
    leftover = {**there.leftover, **found.aside}
    bits = _bits(there.beside or {}, there.path / FACTS)
    weights = Weights(architecture, found.tensors, leftover, mean, std, found.manifest, bits)
    return _checked(weights, path, name)


def save(weights: Weights, path: str | Path, to: str, *, force: bool = False) -> Manifest | None:
    """Writes weights; nothing is left half-written.

    Args:
      path: for "official" a .pth file, otherwise a folder. What the layout has no place for goes into
        `dino_jax.safetensors` in the folder, where `read` finds it again; beside a .pth there is no such file, so
        there it is an error.
      to: one of `FORMATS`.

    Returns:
      What became of every tensor; None for our own format, which holds them as they are.

    Raises:
      ValueError: when something exists at `path` and `force` is off or it is not weights, or the layout cannot hold
        this network.
    """
    path = Path(path).expanduser()
    refuse_existing(path, folder=to != "official", force=force)
    if to == "orbax":
        orbax.write(path, {"params": unflatten(weights.params), "leftover": weights.leftover}, _facts(weights))
        return None
    layout = layout_for(weights.architecture, to)
    drop = _dropped(weights, layout)
    config = _config(weights, layout, biased=not drop)
    out = mapping.to_theirs(weights.params, layout, weights.architecture.options, leftover=weights.leftover, drop=drop)
    if to == "official":
        if out.aside:
            raise ValueError(f"{layout.name} has no place for {', '.join(out.aside)}: choose another format")
        pth_writer.write(path, out.tensors)
        return out.manifest
    aside = {f"ours/{name}": x for name, x in out.aside.items()}
    aside |= {f"official/{name}": x for name, x in weights.leftover.items()}
    with replacing(path) as folder:
        folder.mkdir()
        safetensors.write(folder / "model.safetensors", out.tensors)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / FACTS).write_text(json.dumps(_facts(weights), indent=2) + "\n")
        if to == "hf":
            images = configs.preprocessor(weights.architecture.family, weights.mean, weights.std)
            (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
        if aside:
            safetensors.write(folder / ASIDE, aside)
    return out.manifest


def _checked(weights: Weights, path: Path, name: str | None) -> Weights:
    """Makes sure that weights are whole and of the architecture that was asked for."""
    is_there = weights.architecture
    check_name(is_there, path, name)
    problem = weights.manifest.problem()
    if problem:
        raise ManifestError(f"the weights in {path}, read as {is_there.name}, do not fit: {problem}", weights.manifest)
    check_finite(weights.params, path)
    return weights


def check_heads(stated: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError for another number of attention heads than is stated beside weights, whose shapes allow any."""
    there, here = stated.get("heads"), given.get("heads")
    if None not in (there, here) and there != here:
        raise ValueError(f"the weights in {path} say that they have {there} heads, not {here}: leave the heads out")


def check_shapes(weights: Weights, path: Path) -> None:
    """Raises ValueError when the options make another network of the weights than they were read for."""
    there = {name: tuple(x.shape) for name, x in weights.params.items()}
    wanted = {name: tuple(shape) for name, shape in weights.architecture.shapes().items()}
    for name in sorted({*there, *wanted}):
        if there.get(name) != wanted.get(name):
            raise ValueError(
                f"the weights in {path} do not fit these options: {name} is {there.get(name, 'absent')} there and "
                f"{wanted.get(name, 'absent')} here: leave out options that the weights tell"
            )


def check_name(is_there: Architecture, path: Path, name: str | None) -> None:
    """Raises ValueError when weights are of another architecture than `name`, if that is given."""
    if name is not None and published(name).name != is_there.name:
        known = is_there.name in VARIANTS
        raise ValueError(
            f"the weights in {path} look like {is_there.name} ({is_there.describe()}), not like {name} "
            f"({published(name).describe()}): {f'load them as {is_there.name}' if known else 'leave out the name'}"
        )


def _read_ours(path: Path) -> Weights:
    content, facts = orbax.read(path)
    flat = {key: x for key, x in content.items() if key.startswith("params/")}
    manifest = Manifest("orbax")
    architecture = _from_facts(facts, path / FACTS)
    params = {key.removeprefix("params/"): x for key, x in flat.items()}
    for key, shape in architecture.shapes().items():
        there = params[key].shape if key in params else None
        kind = "missing" if there is None else "matched" if there == shape else "misshapen"
        manifest.add(
            kind, theirs=(key,), ours=(key,), their_shapes=(there or (),), our_shapes=(shape,), note="as it is"
        )
    leftover = {key.removeprefix("leftover/"): x for key, x in content.items() if key not in flat}
    channels = architecture.options["in_channels"]
    mean, std = (statistics.of_file(path / FACTS, key, facts[key], channels) for key in ("mean", "std"))
    return Weights(architecture, params, leftover, mean, std, manifest, _bits(facts, path / FACTS))


def _recognise(there: Checkpoint) -> Layout:
    names = list(there.state)
    try:
        return layouts.recognise(names, whose=there.whose)
    except ValueError as error:
        if there.whose in ("official", "timm"):  # timm's state dicts are saved as .pth too
            return _recognise(dataclasses.replace(there, whose=None))
        raise ValueError(f"{there.path}: {error}") from None


def _architecture(there: Checkpoint, layout: Layout, options: Mapping[str, Any]) -> Architecture:
    if there.beside is not None:
        architecture = _from_facts(there.beside, there.path / FACTS)
        check_heads(architecture.options, options, there.path)
        # The layout's own code resizes positions in its way, the weights' origin perhaps otherwise.
        return architecture.with_options(**{**layout.options, **options})
    known = configs.options_of(dict(there.config), there.path) if there.whose == "hf" else {}
    check_heads(known, options, there.path)
    try:
        return infer.architecture(there.state, layout, {**known, **options})
    except KeyError as error:
        raise ValueError(f"{there.path} looks like {layout.name} but lacks {error}: fetch it again") from None
    except IndexError:
        raise ValueError(f"{there.path} looks like {layout.name}, but its tensors have other dimensions") from None


def _statistics(there: Checkpoint, channels: int) -> tuple[statistics.Numbers, statistics.Numbers]:
    found = dict(there.statistics)
    if len(found) < 2 and there.beside is not None:
        found = {key: (there.path / FACTS, there.beside[key]) for key in ("mean", "std")}
    if len(found) < 2:
        mean, std = (statistics.spread(x, channels) for x in statistics.published(there.path).values())
    else:
        mean, std = (statistics.of_file(found[key][0], key, found[key][1], channels) for key in ("mean", "std"))
    return mean, std


def _facts(weights: Weights) -> dict[str, Any]:
    """Returns what our own json says of weights."""
    a = weights.architecture
    facts = {"name": a.name, "family": a.family, "options": dict(a.options)}
    return facts | {"mean": list(weights.mean), "std": list(weights.std), "bits": weights.bits}


def _bits(facts: Mapping[str, Any], file: Path) -> int:
    """Returns the bits of the images that weights were trained on; 0, which leaves it open, where a file lacks them."""
    bits = facts.get("bits", 0)
    if bits not in (0, 8, 16):
        raise ValueError(f"{file} is damaged: bits = {bits!r} is not 0, 8 or 16; write the weights again")
    return int(bits)


def _from_facts(facts: Mapping[str, Any], file: Path) -> Architecture:
    lacking = [key for key in ("name", "family", "options", "mean", "std") if key not in facts]
    if lacking:
        raise ValueError(f"{file} lacks {', '.join(lacking)}: write the weights again")
    if facts["family"] not in list(BASES):
        raise ValueError(f"{file}: there is no family {facts['family']!r}: use {', '.join(BASES)}")
    if not isinstance(facts["options"], dict):
        raise ValueError(f"{file} is damaged: options = {facts['options']!r} is not a mapping; write the weights again")
    try:
        return Architecture(str(facts["name"]), facts["family"], facts["options"])
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def layout_for(architecture: Architecture, to: str) -> Layout:
    """Returns the layout that weights of an architecture have in one of the formats but our own.

    Raises:
      ValueError: for an unknown format, or one without a class for this network.
    """
    if to not in FORMATS:
        raise ValueError(f"to = {to!r} is not one of {', '.join(FORMATS)}")
    fitting = [layout for layout in LAYOUTS.values() if (layout.whose, layout.family) == (to, architecture.family)]
    if not fitting:
        raise ValueError(
            f"there is no class for {architecture.name} in format {to!r}: choose another of {', '.join(FORMATS)}"
        )
    # Where there are two, the second is for registers.
    return fitting[-1] if architecture.options.get("registers") else fitting[0]


def _dropped(weights: Weights, layout: Layout) -> str:
    """Returns the pattern of names that this checkpoint does without."""
    options = weights.architecture.options
    if layout.name == "hf_dinov3" and options.get("mask_key_bias"):
        return r".*\.k_proj\.bias"
    if layout.name == "timm_dinov3":
        bias = weights.params.get("blocks/attn/qkv/bias")
        width = options["width"]
        if bias is None or not (bias[:, :width].any() or bias[:, 2 * width :].any()):
            return r".*\.[qv]_bias"  # timm has networks without, for weights whose biases all are zero
    return ""


def _config(weights: Weights, layout: Layout, *, biased: bool) -> dict[str, Any]:
    if layout.whose == "hf":
        return configs.hugging_face(weights.architecture, layout)
    if layout.whose == "timm":
        return configs.timm(weights.architecture, weights.mean, weights.std, biased=biased)
    return {}
