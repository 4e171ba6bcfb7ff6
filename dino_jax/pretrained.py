"""Loads a network for features: `model, params = dino_jax.load("dinov3_vitl16", weights=PATH)`."""

import dataclasses
import difflib
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dino_jax import checksum
from dino_jax.data.whole import complete_steps, is_complete
from dino_jax.models import VARIANTS, ConvNext, Extractor, ResNet, inflate_patch_embed, init_variables, network_class
from dino_jax.models.extractor import IMAGENET_MEAN, IMAGENET_STD
from dino_jax.weights import orbax, store
from dino_jax.weights.configs import TIMM
from dino_jax.weights.files import check_finite
from dino_jax.weights.manifest import Manifest
from dino_jax.weights.network import STATS, Architecture, Tree, family_of, flatten, published
from dino_jax.weights.source import check_branch
from dino_jax.weights.statistics import problem, spread
from dino_jax.weights.store import Weights

RANDOM = "random:"
SEALED = ("content", "checksums")  # what `checksum.sealed` consists of
FLOATS = ("float32", "bfloat16", "float16")  # norms, softmax and rotations are in float32, so no wider one


def load(
    name_or_path: str | Path,
    weights: str | Path | None = None,
    *,
    in_chans: int | None = None,
    dtype: Any = "float32",
    seed: int = 0,
    branch: str = "teacher",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    **options: Any,
) -> tuple[Extractor, Tree]:
    """Loads a network and its weights.

    >>> import numpy as np
    >>> import dino_jax
    >>> model, params = dino_jax.load("random:dinov3_vits16")  # or load("dinov3_vits16", weights=PATH)
    >>> photographs = np.zeros((2, 224, 320, 3), np.uint8)
    >>> features = model(model.normalize(photographs))
    >>> features["cls"].shape, features["registers"].shape, features["patches"].shape
    ((2, 384), (2, 4, 384), (2, 14, 20, 384))

    Args:
      name_or_path: a published architecture, or the weights alone where they tell it: an official .pth, a folder of
        Hugging Face or timm, one that `python -m dino_jax.convert` wrote, a run's workdir (its newest EMA teacher), a
        run's `checkpoints/<step>` or `gram_teacher/<step>`, or "random:NAME".
      weights: the same kinds of file or folder, or "random:NAME" of the same name; None draws them from `seed`, with a
        warning.
      in_chans: channels of the images; None takes those of the weights. Weights for three are spread over others
        (`models.inflate_patch_embed`), and so are the channel statistics.
      dtype: of parameters and computation, one of `FLOATS`.
      branch: which network of a training checkpoint, "teacher" or "student".
      mean, std: statistics of each channel, for images in [0, 1]; None takes those of the weights. The satellite
        weights of DINOv3 are known by "sat493m" in their name, and have `statistics.SATELLITE`.
      options: of the network, where the weights do not tell (such as heads), or to compute otherwise (such as
        attention="cudnn").

    Returns:
      The model, which takes images and holds its parameters, and the parameters by themselves.

    Raises:
      ValueError: in one line, for an unknown name (the nearest are named), weights of another architecture (which one
        is named), damaged, incomplete or hostile files, and channels, statistics or types that do not fit.
    """
    kind = _float_type(dtype)
    place = str(name_or_path if weights is None else weights)
    name = None if weights is None else published(str(name_or_path)).name
    named = name is None and place in VARIANTS and not Path(place).exists()
    if named:
        warnings.warn(f"{place} has random weights (seed {seed}): give weights=PATH for trained ones", stacklevel=2)
    if named or place.startswith(RANDOM):
        random = place.removeprefix(RANDOM)
        store.check_name(published(random), Path(place), name)
        found = drawn(random, seed=seed, in_chans=in_chans or 3, **options)
    else:
        found = read(place, name, branch=branch, **options)
    found = with_statistics(with_channels(found, in_chans), mean, std)
    model = found.extractor(kind)
    return model, model.params


def load_on_host(path: str | Path) -> tuple[Extractor, Tree]:
    """Loads as `load`, but leaves the parameters on the host, in the types of the file, for whoever spreads them; with
    them come a ResNet's running statistics, under "batch_stats"."""
    found = read(path)
    architecture, params, stats = found.architecture, found.tree(), found.stats()
    model = Extractor(architecture.name, architecture.build(), params, found.mean, found.std, batch_stats=stats)
    return model, params | ({STATS: stats} if stats else {})


def read(path: str | Path, name: str | None = None, *, branch: str = "teacher", **options: Any) -> Weights:
    """Reads weights of any kind, see `load`; they stay on the host, in the types of the file.

    Raises:
      ValueError: as `load`.
    """
    path = Path(path).expanduser()
    check_branch(branch)
    if not path.exists():
        of_timm = [ours for ours, theirs in TIMM.items() if str(path).startswith(theirs)]
        if not of_timm and (len(path.parts) > 1 or path.suffix):
            file = path.suffix in (".pth", ".pt", ".bin", ".safetensors")
            hub = " (what is on a hub must be downloaded first)" if len(path.parts) == 2 and not file else ""
            raise ValueError(f"there are no weights at {path}: check the path{hub}")
        if str(path) in VARIANTS:
            raise ValueError(f"{path} is an architecture, not a file or folder: give the path of its weights")
        near = of_timm[-1:] or difflib.get_close_matches(str(path), VARIANTS, n=3, cutoff=0.6)
        known = f"did you mean {' or '.join(near)}?" if near else f"architectures are {', '.join(VARIANTS)}"
        raise ValueError(f"{path} is neither a file or folder nor an architecture: {known}")
    place = run_place(path)
    if place is None:
        return store.read(path, name, branch=branch, **options)
    found = read_run(*place, branch=branch)
    store.check_name(found.architecture, path, name)
    store.check_heads(found.architecture.options, options, path)
    found = dataclasses.replace(found, architecture=found.architecture.with_options(**options))
    store.check_shapes(found, path)
    return found


def drawn(name: str, *, seed: int, in_chans: int = 3, **options: Any) -> Weights:
    """Draws the weights of a published architecture.

    Raises:
      ValueError: for an unknown name; the nearest are named.
    """
    architecture = published(name).with_options(in_channels=in_chans, **options)
    variables = jax.tree.map(np.asarray, init_variables(architecture.build(), jax.random.key(seed)))
    flat = flatten(variables["params"]) | flatten({STATS: variables.get(STATS, {})})
    mean, std = spread(IMAGENET_MEAN, in_chans), spread(IMAGENET_STD, in_chans)
    return Weights(architecture, flat, {}, mean, std, Manifest("random"))


def with_channels(weights: Weights, in_chans: int | None) -> Weights:
    """Returns weights for images of `in_chans` channels, None for those that they are for.

    Raises:
      ValueError: if they are for others than these, and not for three.
    """
    there = weights.architecture.options["in_channels"]
    if in_chans in (None, there):
        return weights
    if there != 3:
        raise ValueError(
            f"the weights of {weights.architecture.name} are for {there} channels, not {in_chans}: load them with "
            f"in_chans={there}; only weights for 3 are spread over others"
        )
    params = inflate_patch_embed(weights.tree(), in_chans)
    flat = {path: np.asarray(x) for path, x in flatten(params).items()} | flatten({STATS: weights.stats()})
    return dataclasses.replace(
        weights,
        architecture=weights.architecture.with_options(in_channels=in_chans),
        params=flat,
        mean=spread(weights.mean, in_chans),
        std=spread(weights.std, in_chans),
    )


def with_statistics(weights: Weights, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Weights:
    """Returns weights with other channel statistics, where they are given.

    Raises:
      ValueError: if they are not as many as channels, not finite, or a standard deviation is not positive.
    """
    given = {name: tuple(values) for name, values in (("mean", mean), ("std", std)) if values is not None}
    for name, values in given.items():
        wrong = problem(name, values, weights.architecture.options["in_channels"])
        if wrong:
            raise ValueError(f"{wrong}: give a number for each channel")
    # Those of NumPy would not go into JSON.
    plain = {name: tuple(map(float, values)) for name, values in given.items()}
    return dataclasses.replace(weights, mean=plain.get("mean", weights.mean), std=plain.get("std", weights.std))


def _float_type(dtype: Any) -> jnp.dtype:
    """Returns a type of `FLOATS`.

    Raises:
      ValueError: for any other.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in FLOATS:
        raise ValueError(f"dtype = {dtype!r} is not one of {', '.join(FLOATS)}")
    return found


def run_place(path: Path) -> tuple[Path, Path] | None:
    """Finds (workdir, folder of a checkpoint or snapshot) where `path` belongs to a run of ours; None elsewhere.

    Raises:
      ValueError: for a run without any checkpoint, or arrays whose run cannot be found.
    """
    if is_complete(path):
        workdir = path.resolve().parent.parent
        if not is_workdir(workdir):
            raise ValueError(f"{path} is a checkpoint without its run: {workdir / 'config.json'} is needed beside it")
        return workdir, path
    if not path.is_dir() or not is_workdir(path):
        return None
    saved = complete_steps(path / "checkpoints")
    if not saved:
        raise ValueError(f"the run in {path} has saved no checkpoint yet: wait for it")
    return path, path / "checkpoints" / str(saved[-1])


def is_workdir(path: Path) -> bool:
    """Says whether a folder has the config.json of a run."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "seed" in config and any(key.startswith("model.") for key in config)


def read_run(workdir: Path, folder: Path, *, branch: str) -> Weights:
    """Reads the backbone of a checkpoint (of its EMA teacher or student), or a snapshot.

    Raises:
      ValueError: when it is damaged.
    """
    config = json.loads((workdir / "config.json").read_text())
    options = {key.removeprefix("model."): x for key, x in config.items() if key.startswith("model.")}
    options.pop("attention", None)  # that of the devices it was trained on
    architecture = architecture_of_run(options)
    if (folder / "state").is_dir():
        wanted = [(branch, "backbone"), *([(STATS, branch)] if architecture.family == "resnet" else [])]
        tree = orbax.read_tree(folder / "state", [(part, *path) for part in SEALED for path in wanted])
        stats = {part: {STATS: tree[part][STATS][branch]} if STATS in tree[part] else {} for part in SEALED}
        sealed = {part: tree[part][branch]["backbone"] | stats[part] for part in SEALED}
    elif branch == "student":
        raise ValueError(f"{folder} is a snapshot of the teacher: leave branch out, or use a checkpoint of the run")
    else:
        sealed = orbax.read_tree(folder)
    try:
        checksum.check(sealed["content"], sealed["checksums"])
    except ValueError as error:
        raise ValueError(f"{folder} is damaged ({error}): use another checkpoint of this run") from None
    params = flatten(sealed["content"])
    check_finite(params, folder)
    mean, std = (tuple(config[f"data.{key}"]) for key in ("mean", "std"))
    manifest = Manifest("run")
    for path, x in params.items():
        manifest.add(
            "matched", theirs=(path,), ours=(path,), their_shapes=(x.shape,), our_shapes=(x.shape,), note="as it is"
        )
    return Weights(architecture, params, {}, mean, std, manifest, bits=config.get("data.bits", 0))


def architecture_of_run(options: dict[str, Any]) -> Architecture:
    """Returns the architecture of a run's `model` options: a published one where family, size and kind agree."""
    family = _family_of_run(options)
    telling = ("width", "depth", "patch_size", "ffn", "heads", "registers", "depths", "widths", "channels")
    for name, there in VARIANTS.items():
        same = {key: list(x) if isinstance(x, tuple) else x for key, x in there.items()}
        if family_of(name) == family and all(same.get(key) == options.get(key) for key in telling):
            return Architecture(name, family, {**there, **options})
    return Architecture(f"{family}_custom", family, options)


def _family_of_run(options: dict[str, Any]) -> str:
    """Tells the generation by what only one of those that can be trained has."""
    of_convolutions = {ConvNext: "convnext", ResNet: "resnet"}.get(network_class(options))
    if of_convolutions:
        return of_convolutions
    if not options.get("pos_grid"):
        return "dinov3"
    return "dinov2" if options.get("masking", True) else "dino"
