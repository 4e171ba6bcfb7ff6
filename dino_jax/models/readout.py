"""What a vision transformer computes on the way: tokens after any of its blocks, and the last attention and keys."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dino_jax.models.block import Block
from dino_jax.models.vit import VisionTransformer


def intermediate_layers(
    model: VisionTransformer, params: Any, images: Array, layers_wanted: Sequence[int], *, norm: bool = True
) -> list[dict[str, Array]]:
    """Returns the tokens after the given blocks (negative indices count from the end).

    Args:
      images: `(batch, height, width, channels)`.
      norm: apply the final norm (never the local one) to each.

    Returns:
      For each wanted block "cls" `(batch, dim)`, "registers" and "patches" `(batch, n, dim)`.
    """
    if not layers_wanted:
        return []
    out = []
    for x in after_blocks(model, params, images, [index % model.depth for index in layers_wanted]):
        if norm:
            out.append(model.apply({"params": params}, x, method="final_norm"))
        else:
            prefix = 1 + model.registers
            out.append({"cls": x[:, 0], "registers": x[:, 1:prefix], "patches": x[:, prefix:]})
    return out


def after_blocks(model: VisionTransformer, params: Any, images: Array, wanted: Sequence[int]) -> list[Array]:
    """Returns the tokens `(batch, tokens, width)` after the given blocks, before the norm; -1 is what enters the first.

    The blocks run one after another, in one compiled body; only the wanted tokens are kept, and no block after the
    last of them runs.

    Args:
      images: `(batch, height, width, channels)`.
      wanted: from -1 to `depth - 1`.
    """
    x, table, length = model.apply({"params": params}, images, method="entrance")
    last = max(wanted)
    kept = sorted(set(wanted) - {last})
    places = np.full(last + 2, len(kept))  # in `saved`, whose last place is for what nobody wants
    places[[index + 1 for index in kept]] = np.arange(len(kept))
    saved = jnp.zeros((len(kept) + 1, *x.shape), x.dtype) if kept else None

    def save(saved: Array | None, x: Array, place: Array) -> Array | None:
        return saved if saved is None else jax.lax.dynamic_update_index_in_dim(saved, x, place, 0)

    def step(carry: tuple[Array, Array | None], block_and_place: tuple[Array, Array]):
        x, saved = carry
        index, place = block_and_place
        block = _block(model, params, index)
        tokens, _ = block({"": x}, {"": table}, False, False, None, {"": length})
        return (tokens[""], save(saved, tokens[""], place)), None

    first = (x, save(saved, x, jnp.asarray(places[0])))
    (x, saved), _ = jax.lax.scan(step, first, (jnp.arange(last + 1), jnp.asarray(places[1:])))
    found = {last: x} | ({} if saved is None else dict(zip(kept, saved, strict=False)))
    tokens = 1 + model.registers + math.prod(model.grid(images.shape[1:3]))
    return [found[index][:, :tokens] for index in wanted]


def last_attention(model: VisionTransformer, params: Any, images: Array, *, queries: int | None = None) -> Array:
    """Returns the last block's attention weights `(batch, heads, queries, tokens)`, float32.

    Args:
      images: `(batch, height, width, channels)`.
      queries: how many of the first tokens, CLS being the first; all by default, which takes much memory for large
        images.
    """
    (x,) = after_blocks(model, params, images, [model.depth - 2])
    table = model.apply({"params": params}, images.shape[1:3], False, method="rope_table")
    return _block(model, params, model.depth - 1).attention_probabilities(x, table, queries)


def last_keys(model: VisionTransformer, params: Any, images: Array) -> Array:
    """Returns the keys of the patches in the last block's attention, heads side by side: `(batch, patches, width)`.

    They are what the projection gives, bias included, before rotary positions turn them; in DINO and DINOv2, which
    have no such positions, they are the keys that are attended to.

    Args:
      images: `(batch, height, width, channels)`.
    """
    (x,) = after_blocks(model, params, images, [model.depth - 2])
    block = _block(model, params, model.depth - 1)
    _, keys, _ = block.attn.queries_keys_values(block.norm1(x), None)
    return keys.reshape(x.shape)[:, 1 + model.registers :]


def _block(model: VisionTransformer, params: Any, index: Any) -> Block:
    """Returns a block with its parameters, which are stacked on a leading axis."""
    own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), params["blocks"])
    return Block(**model.block_options()).bind({"params": own})
