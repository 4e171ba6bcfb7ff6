"""The maps of convolutional networks, read as the tokens of a transformer."""

from typing import Any

import jax
from einops import rearrange
from jax import Array

STATS = "batch_stats"  # the collection of BatchNorm's running statistics


def to_tokens(x: Array) -> dict[str, Array]:
    """Reads a map `(batch, height, width, dim)` as "cls" (its mean), "registers" (none) and "patches" (row-major)."""
    patches = rearrange(x, "b h w d -> b (h w) d")
    return {"cls": patches.mean(1), "registers": patches[:, :0], "patches": patches}


def intermediate_stages(
    model: Any,
    params: Any,
    images: Array,
    stages_wanted: list[int],
    *,
    norm: bool = True,
    patch_size: int | None = None,
    batch_stats: Any = None,
) -> list[dict[str, Array]]:
    """Returns the tokens after the given stages (negative indices count from the end).

    Args:
      model: a `ConvNext` or `ResNet`.
      images: `(batch, height, width, channels)`.
      norm: apply the final norm, if the network has one, to the last stage; the others have none.
      patch_size: resize every map to `(height // patch_size, width // patch_size)` (bilinear, antialiased, before the
        norm), as if all stages saw patches of this size; None leaves stage i at its stride of 4 * 2 ** i.
      batch_stats: running statistics of a ResNet.

    Returns:
      For each wanted stage "cls" `(batch, dim)`, "registers" `(batch, 0, dim)` and "patches" `(batch, n, dim)`.
    """
    variables = {"params": params} | ({STATS: batch_stats} if batch_stats else {})
    stages = model.apply(variables, {"global": images}, collect=True)["global"]["stages"]
    out = []
    for index in stages_wanted:
        x = stages[index]
        tokens = to_tokens(x)
        if patch_size is not None:
            grid = (images.shape[1] // patch_size, images.shape[2] // patch_size)
            resized = jax.image.resize(x, (len(x), *grid, x.shape[-1]), "linear", antialias=True)
            tokens["patches"] = to_tokens(resized)["patches"]
        if norm and index in (-1, len(stages) - 1):
            tokens = model.apply(variables, tokens, method="final_norm")
            del tokens["prenorm"]
        out.append(tokens)
    return out
