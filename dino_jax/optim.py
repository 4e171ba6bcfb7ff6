"""The optimizer: per-parameter learning rates and decay, clipping per module, AdamW, and the teacher's average.

Parameters are nested dicts whose first level is the module (`backbone`, `dino_head`, `ibot_head`). Blocks are stacked:
leaves below `<module>/blocks/` have a leading depth axis.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# What enters before the first block: layer 0 of the layer-wise decay.
EMBEDDINGS = re.compile(r"^[^/]+/(cls_token|registers|mask_token|pos_embed|patch_embed)(/|$)")
BLOCKS = re.compile(r"^[^/]+/blocks/")
PATCH_EMBED = re.compile(r"^[^/]+/patch_embed/")
# Biases, norms and LayerScale. Tokens and position embeddings do decay, as in the references.
UNDECAYED = re.compile(r"norm|(^|/)(bias|gamma)$")
LAST_LAYER = re.compile(r"(^|/)prototypes/")


def _map_paths(function: Callable[[str, Any], Any], params: Any) -> Any:
    """Maps `function(path "a/b/c", leaf)` over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), params
    )


def _depths(params: dict[str, Any]) -> dict[str, int]:
    """Reads the number of blocks of each module that has any."""
    return {module: jax.tree.leaves(tree["blocks"])[0].shape[0] for module, tree in params.items() if "blocks" in tree}


def lr_multipliers(params: dict[str, Any], *, layer_decay: float, patch_embed_multiplier: float) -> Any:
    """Gives every parameter its share of the learning rate (layer-wise decay, BEiT; DINOv2 code).

    In a module with L blocks, block i has layer_decay ** (L - i), the embeddings and tokens layer_decay ** (L + 1), and
    what follows the blocks 1. The patch embedding is multiplied by its own factor besides. Modules without blocks
    (heads, convolutional networks) have 1.

    Args:
      params: {module: tree of arrays or shapes}.
      layer_decay: factor from each layer to the one below it.
      patch_embed_multiplier: additional factor of the patch embedding.

    Returns:
      A tree of float32 arrays that broadcast to the parameters: `()`, or `(depth, 1, ...)` for stacked blocks.
    """
    depths = _depths(params)

    def multiplier(path: str, leaf: Any) -> Any:
        depth = depths.get(path.split("/")[0])
        if depth is None:
            return np.float32(1)
        if BLOCKS.match(path):
            shares = layer_decay ** np.arange(depth, 0, -1, dtype=np.float64)
            return shares.astype(np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
        share = layer_decay ** (depth + 1) if EMBEDDINGS.match(path) else 1.0
        return np.float32(share * patch_embed_multiplier if PATCH_EMBED.match(path) else share)

    return _map_paths(multiplier, params)


def decay_mask(params: Any) -> Any:
    """Gives 1 to every parameter that weight decay applies to, 0 to biases, norms and LayerScale (float32 scalars)."""
    return _map_paths(lambda path, leaf: np.float32(not UNDECAYED.search(path)), params)


def is_last_layer(params: Any) -> Any:
    """Marks the prototypes, the heads' last layers, which stay frozen at the start of a run (a tree of bools)."""
    return _map_paths(lambda path, leaf: bool(LAST_LAYER.search(path)), params)


def update_norms(tree: dict[str, Any]) -> dict[str, jax.Array]:
    """Computes the L2 norm of each module's gradients or updates: {module: float32 scalar}."""
    return {module: optax.tree.norm(leaves) for module, leaves in tree.items()}


def clip_by_module(grads: dict[str, Any], max_norm: float) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Scales the gradient of each module down to `max_norm`, each by its own norm.

    Args:
      grads: {module: tree of arrays}.
      max_norm: the largest L2 norm a module's gradient may have.

    Returns:
      The clipped gradients, and {module: norm before clipping}. A non-finite norm makes its module non-finite.
    """
    norms = update_norms(grads)
    # 1e-6 as in torch's clip_grad_norm_.
    scales = {module: jnp.minimum(max_norm / (norm + 1e-6), 1.0) for module, norm in norms.items()}
    return {module: jax.tree.map(lambda g, s=scales[module]: g * s, grads[module]) for module in grads}, norms


def adamw(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """Builds AdamW with schedules and per-parameter multipliers given at each update.

    The update of a parameter p with Adam direction u is  - rate * (u + weight_decay * decay_mask * p)  with
    rate = multiplier * lr, or multiplier * last_layer_lr for the last layers. At a rate of 0 the parameter rests while
    its moments and the step count advance (DINOv2 and DINOv3 code).

    `update(grads, state, params, *, lr, last_layer_lr, weight_decay, lr_multipliers, decay_mask, last_layer)` takes
    float32 scalars and the trees of this module's functions of the same names (`last_layer` of `is_last_layer`), which
    are constants and not traced.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      The transformation. Its state is an `optax.ScaleByAdamState`, float32 moments in the tree of the parameters.
    """

    def init(params):
        return optax.scale_by_adam().init(jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params))

    def update(
        grads, state, params=None, *, lr, last_layer_lr, weight_decay, lr_multipliers, decay_mask, last_layer, **extra
    ):
        del extra  # optax's protocol: other transformations of a chain may take further arguments
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        mu_scale, nu_scale = _bias_correction(b1, count), _bias_correction(b2, count)

        def step(m, v, p, multiplier, decayed, last):
            rate = multiplier * (last_layer_lr if last else lr)
            direction = (m / mu_scale) / (jnp.sqrt(v / nu_scale) + eps)
            return -rate * (direction + weight_decay * decayed * p)

        updates = jax.tree.map(step, mu, nu, params, lr_multipliers, decay_mask, last_layer)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _bias_correction(decay: float, count: jax.Array) -> jax.Array:
    """Computes 1 - decay ** count; directly, as optax does, float32 would lose three digits at decay 0.999."""
    return -jnp.expm1(count * math.log(decay))


def ema(teacher: Any, student: Any, momentum: jax.typing.ArrayLike) -> Any:
    """Moves the teacher towards the student: momentum * teacher + (1 - momentum) * student."""
    return optax.incremental_update(student, teacher, 1.0 - momentum)
