"""An architecture as weights see it: a name, the options of its class, and the shape of every parameter."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dino_jax import models
from dino_jax.models.stages import STATS

Tree = dict[str, Any]
Flat = dict[str, np.ndarray]

FLAX = ("parent", "name")  # fields of every module
MAY_BE_ZERO = ("registers", "pos_grid")

# A published network of each family; those of other sizes are given as changes to it.
BASES = {
    "dino": "dino_vits16",
    "dinov2": "dinov2_vits14",
    "dinov3": "dinov3_vits16",
    "convnext": "dinov3_convnext_tiny",
    "resnet": "dino_resnet50",
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network without its weights.

    Attributes:
      name: published, or "<family>_custom".
      family: a key of `BASES`.
      options: all options of its class.

    Raises:
      ValueError: when an option is missing, unknown or of another kind, or the heads do not divide the width.
    """

    name: str
    family: str
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Checks the options, which may come from a file."""
        fields = {field.name: field for field in dataclasses.fields(self.build()) if field.name not in FLAX}
        for name, field in fields.items():
            if name not in self.options:
                if field.default is dataclasses.MISSING:
                    raise ValueError(f"{self.name} lacks the option {name}: give it")
            elif not _fits(self.options[name], field.type, least=0 if name in MAY_BE_ZERO else 1):
                kind = getattr(field.type, "__name__", str(field.type))
                raise ValueError(f"{self.name} cannot have {name} = {self.options[name]!r}: give a fitting {kind}")
        heads, width = self.options.get("heads"), self.options.get("width")
        if heads is not None and width is not None and (heads < 1 or width % heads):
            raise ValueError(
                f"{self.name} of width {width} cannot have {heads} heads: give a divisor of {width} (--heads N, in "
                "Python heads=N)"
            )

    def build(self) -> Any:
        """Returns the Flax module."""
        options = {key: tuple(x) if isinstance(x, list) else x for key, x in self.options.items()}
        return models.build(BASES[self.family], **options)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every parameter by path, computing nothing."""
        # No shape depends on the kernel of the attention, which may not exist here.
        plain = self.with_options(attention="xla") if self.options.get("attention") == "cudnn" else self
        return _shapes(plain.build())

    def with_options(self, **changes: Any) -> "Architecture":
        """Returns the architecture with other options."""
        return dataclasses.replace(self, options={**self.options, **changes})

    def describe(self) -> str:
        """Says in a few words how large it is."""
        o = self.options
        if self.family == "convnext":
            return f"stages of {_listed(o['depths'])} blocks, {_listed(o['widths'])} wide"
        if self.family == "resnet":
            return f"stages of {_listed(o['depths'])} blocks"
        extras = [f"{o['registers']} registers"] if o["registers"] else []
        extras += ["SwiGLU"] if o["ffn"] == "swiglu" else []
        extras += [f"{o['in_channels']} channels"] if o["in_channels"] != 3 else []
        return ", ".join([f"width {o['width']}, depth {o['depth']}, patch {o['patch_size']}", *extras])


@functools.cache
def _shapes(backbone: Any) -> dict[str, tuple[int, ...]]:
    variables = jax.eval_shape(functools.partial(models.init_variables, backbone), jax.random.key(0))
    flat = flatten(variables["params"]) | flatten({STATS: variables.get(STATS, {})})
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def _listed(numbers: Any) -> str:
    return "-".join(map(str, numbers))


def _fits(value: Any, kind: Any, *, least: int) -> bool:
    """Says whether an option's value is of the kind of its field, whole numbers being `least` or more."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    if kind == tuple[int, ...]:
        return isinstance(value, list | tuple) and all(_fits(x, int, least=least) for x in value)
    if kind in (bool, str):
        return isinstance(value, kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {float: number, float | None: number or value is None}.get(kind, True)


def published(name: str) -> Architecture:
    """Returns a published architecture.

    Raises:
      ValueError: if there is none of this name; the nearest are named.
    """
    if name not in models.VARIANTS:
        models.build(name)  # its error names the nearest
    return Architecture(name, family_of(name), models.VARIANTS[name])


def family_of(name: str) -> str:
    """Returns the family of a published name, such as "dinov2" of "dinov2_vitb14"."""
    first, kind = name.split("_")[:2]
    return kind if kind == "convnext" else "resnet" if kind.startswith("resnet") else first


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested dicts into one, with "/" between the keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{prefix}{key}/")
        else:
            out[f"{prefix}{key}"] = value
    return out


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Undoes `flatten`."""
    out: Tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = out
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return out
