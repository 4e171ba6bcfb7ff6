"""The optimizers: per-parameter learning rates and decay, clipping, AdamW, SGD, and the teacher's average.

Parameters are nested dicts whose first level is the module (`backbone`, `dino_head`, `ibot_head`). Blocks are stacked:
leaves below `<module>/blocks/` have a leading depth axis.
"""

import dataclasses
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
STACKED = re.compile(r"(^|/)blocks/")  # those of a ConvNeXt's stages too
PATCH_EMBED = re.compile(r"^[^/]+/patch_embed/")
# Biases, norms and LayerScale. Tokens and position embeddings do decay, as in the references.
UNDECAYED = re.compile(r"norm|(^|/)(bias|scale|gamma)$")
GAIN = re.compile(r"(^|/)prototypes/gain$")
LAST_LAYER = re.compile(r"(^|/)prototypes/")
EPS = 1e-8  # of Adam, added to the root of the second moment, in all references


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


def decay_mask(params: Any, *, gains: bool = True) -> Any:
    """Gives 1 to every parameter that weight decay applies to, 0 to biases, norms and LayerScale (float32 scalars).

    Args:
      gains: whether the gains of weight-normalised prototypes decay; False where they are frozen.
    """
    return _map_paths(
        lambda path, leaf: np.float32(not UNDECAYED.search(path) and (gains or not GAIN.search(path))), params
    )


def is_last_layer(params: Any) -> Any:
    """Marks the prototypes, the heads' last layers, which stay frozen at the start of a run (a tree of bools)."""
    return _map_paths(lambda path, leaf: bool(LAST_LAYER.search(path)), params)


def rates(
    params: dict[str, Any],
    *,
    layer_decay: float,
    patch_embed_multiplier: float,
    lr: jax.typing.ArrayLike,
    backbone_lr: jax.typing.ArrayLike,
    last_layer_lr: jax.typing.ArrayLike,
    unused: tuple[str, ...] = (),
) -> Any:
    """Gives every parameter its learning rate, in the shapes of `lr_multipliers`.

    Args:
      params: {module: tree of arrays or shapes}.
      layer_decay, patch_embed_multiplier: see `lr_multipliers`.
      lr: float32 scalar, for the heads but for their last layers.
      backbone_lr: for the backbone, before its multipliers.
      last_layer_lr: for the last layers.
      unused: beginnings of the paths of parameters without a gradient, which rest: they must not decay.
    """

    def rate(path: str, multiplier: Any) -> Any:
        if path.startswith(unused):
            return np.float32(0)
        if LAST_LAYER.search(path):
            return multiplier * last_layer_lr
        return multiplier * (backbone_lr if path.startswith("backbone/") else lr)

    multipliers = lr_multipliers(params, layer_decay=layer_decay, patch_embed_multiplier=patch_embed_multiplier)
    return _map_paths(rate, multipliers)


def norms_by_module(tree: dict[str, Any]) -> dict[str, jax.Array]:
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
    norms = norms_by_module(grads)
    # 1e-6 as in torch's clip_grad_norm_.
    scales = {module: jnp.minimum(max_norm / (norm + 1e-6), 1.0) for module, norm in norms.items()}
    return {module: jax.tree.map(lambda g, s=scales[module]: g * s, grads[module]) for module in grads}, norms


def clip_by_tensor(grads: dict[str, Any], max_norm: float) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Scales the gradient of each parameter down to `max_norm`, each by its own norm (DINO code).

    A stack of blocks is as many parameters as it has blocks.

    Args:
      grads: {module: tree of arrays}.
      max_norm: the largest L2 norm a parameter's gradient may have.

    Returns:
      The clipped gradients, and {module: norm before clipping}.
    """

    def clipped(path: str, g: jax.Array) -> jax.Array:
        axes = tuple(range(bool(STACKED.search(path)), g.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)), axis=axes, keepdims=True))
        return g * jnp.minimum(max_norm / (norm + 1e-6), 1.0)

    return _map_paths(clipped, grads), norms_by_module(grads)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class AdamState:
    """Moments of AdamW and the numbers of updates they are made of.

    Attributes:
      count: int32 scalar.
      last_layer_count: int32 scalar; for the last layers, which may rest.
      mu, nu: first and second moments, float32, in the tree of the parameters.
    """

    count: jax.Array
    last_layer_count: jax.Array
    mu: Any
    nu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SgdState:
    """The running sum of gradients, float32, in the tree of the parameters."""

    momentum: Any


def adamw(b1: float, b2: float) -> optax.GradientTransformationExtraArgs:
    """Builds AdamW with learning rates per parameter and schedules given at each update.

    The update of a parameter p with Adam direction u is  - rate * (u + weight_decay * decay_mask * p).  At a rate of 0
    the parameter rests while its moments and the step count advance (DINOv2 and DINOv3 code). While `last_layer_rests`
    the last layers' gradients count as absent: nothing of them changes (DINO code).

    `update(grads, state, params, *, rates, weight_decay, decay_mask, last_layer, last_layer_rests)` takes the trees of
    this module's functions `rates`, `decay_mask` and `is_last_layer`; `weight_decay` and `last_layer_rests` (0 or 1)
    are float32 scalars.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.

    Returns:
      The transformation; its state is an `AdamState`.
    """

    def init(params):
        # Arrays of their own: the step donates its state, and no buffer can be donated twice.
        counts = (jnp.zeros((), jnp.int32) for _ in range(2))
        return AdamState(*counts, *(jax.tree.map(_float32_zeros, params) for _ in range(2)))

    def update(
        grads, state, params=None, *, rates, weight_decay, decay_mask, last_layer, last_layer_rests=0.0, **extra
    ):
        del extra  # optax's protocol: other transformations of a chain may take further arguments
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        rests = jnp.asarray(last_layer_rests) > 0
        count = optax.safe_increment(state.count)
        last_count = jnp.where(rests, state.last_layer_count, optax.safe_increment(state.last_layer_count))
        mu = _unless_resting(rests, optax.tree.update_moment(grads, state.mu, b1, 1), state.mu, last_layer)
        nu = _unless_resting(rests, optax.tree.update_moment(grads, state.nu, b2, 2), state.nu, last_layer)

        def step(m, v, p, rate, decayed, last):
            # Before its first gradient a resting layer has no moments to correct.
            updates = jnp.maximum(last_count, 1) if last else count
            mu_scale, nu_scale = _bias_correction(b1, updates), _bias_correction(b2, updates)
            direction = (m / mu_scale) / (jnp.sqrt(v / nu_scale) + EPS)
            return -rate * (direction + weight_decay * decayed * p)

        updates = jax.tree.map(step, mu, nu, params, rates, decay_mask, last_layer)
        return _without_last_layer(rests, updates, last_layer), AdamState(count, last_count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def sgd(momentum: float) -> optax.GradientTransformationExtraArgs:
    """Builds SGD with momentum as PyTorch has it, with which DINO trains convolutional networks.

        sum = momentum * sum + gradient + weight_decay * decay_mask * p,   update = - rate * sum

    Its `update` takes what that of `adamw` does.

    Args:
      momentum: share of the running sum that stays.

    Returns:
      The transformation; its state is an `SgdState`.
    """

    def init(params):
        return SgdState(jax.tree.map(_float32_zeros, params))

    def update(
        grads, state, params=None, *, rates, weight_decay, decay_mask, last_layer, last_layer_rests=0.0, **extra
    ):
        del extra
        rests = jnp.asarray(last_layer_rests) > 0
        total = jax.tree.map(
            lambda g, old, p, decayed: momentum * old + (g.astype(jnp.float32) + weight_decay * decayed * p),
            grads,
            state.momentum,
            params,
            decay_mask,
        )
        total = _unless_resting(rests, total, state.momentum, last_layer)
        updates = jax.tree.map(lambda x, rate: -rate * x, total, rates)
        return _without_last_layer(rests, updates, last_layer), SgdState(total)

    return optax.GradientTransformationExtraArgs(init, update)


def _float32_zeros(p: jax.Array) -> jax.Array:
    return jnp.zeros_like(p, jnp.float32)


def _unless_resting(rests: jax.Array, new: Any, old: Any, last_layer: Any) -> Any:
    """Takes the last layers' leaves from `old` while they rest, all others from `new`."""
    return jax.tree.map(lambda n, o, last: jnp.where(rests, o, n) if last else n, new, old, last_layer)


def _without_last_layer(rests: jax.Array, updates: Any, last_layer: Any) -> Any:
    return _unless_resting(rests, updates, jax.tree.map(jnp.zeros_like, updates), last_layer)


def _bias_correction(decay: float, count: jax.Array) -> jax.Array:
    """Computes 1 - decay ** count; done directly, as in optax, it would lose three digits in float32 at decay 0.999."""
    return -jnp.expm1(count * (math.log(decay) if decay else -math.inf))


def ema(teacher: Any, student: Any, momentum: jax.typing.ArrayLike) -> Any:
    """Moves the teacher towards the student: momentum * teacher + (1 - momentum) * student."""
    return optax.incremental_update(student, teacher, 1.0 - momentum)
