"""Networks by their published names."""

import difflib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dino_jax.models.convnext import ConvNext
from dino_jax.models.resnet import ResNet
from dino_jax.models.variants import VARIANTS
from dino_jax.models.vit import VisionTransformer

Backbone = VisionTransformer | ConvNext | ResNet
# The class of a network, by an option that it alone has.
CLASSES: dict[str, type[Backbone]] = {"heads": VisionTransformer, "widths": ConvNext, "channels": ResNet}


def build(name: str, **changes: Any) -> Backbone:
    """Builds a published network, such as `build("dinov2_vitb14_reg", in_channels=4)`.

    Args:
      name: a key of `variants.VARIANTS`.
      changes: options of its class that differ from the published ones.

    Raises:
      ValueError: if there is no such name or option; the nearest ones are named.
    """
    if name not in VARIANTS:
        raise ValueError(f"there is no architecture {name!r}; {_nearest(name, VARIANTS)}")
    network: Any = network_class(VARIANTS[name])
    unknown = sorted(set(changes) - set(network.__dataclass_fields__))
    if unknown:
        options = [field for field in network.__dataclass_fields__ if field not in ("parent", "name")]
        raise ValueError(f"{name} has no option {unknown[0]!r}; {_nearest(unknown[0], options)}")
    return network(**VARIANTS[name] | changes)


def network_class(options: Mapping[str, Any]) -> type[Backbone]:
    """Tells the class of a network by its options, as a recipe or `variants.VARIANTS` has them.

    Raises:
      ValueError: for options of none.
    """
    for option, network in CLASSES.items():
        if option in options:
            return network
    raise ValueError(f"options of no known network ({', '.join(options)}): one of {', '.join(CLASSES)} is needed")


@functools.partial(jax.jit, static_argnums=0)  # traced once, however often shapes or values are asked for
def init_variables(backbone: Backbone, key: Array) -> dict[str, Any]:
    """Draws a network's parameters, and running statistics if it has any, in Flax's collections."""
    side = backbone.patch_size
    return backbone.init(key, {"global": jnp.zeros((1, side, side, backbone.in_channels))})


def _nearest(word: str, known: Any) -> str:
    """Says which of the known words come nearest."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"
