"""The vision transformer of DINO (arXiv 2104.14294), DINOv2 (2304.07193) and DINOv3 (2508.10104, section 3.2)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from dino_jax.models import layers, resize, rope
from dino_jax.models.block import Block, PatchEmbed

# What the backward pass keeps of each block: everything, the matrix products, or only the block's input.
REMAT_POLICIES = {
    "none": None,
    "matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ATTENTIONS = ("xla", "cudnn")


class VisionTransformer(nn.Module):
    """ViT: patch embedding, CLS, registers, positions, blocks stacked on a leading axis and scanned.

    Called with named groups of crops, so that crops of several sizes share one pass over the weights:
    `model.apply({"params": p}, {"global": images, "local": images}, {"global": masks}, train=True)`.
    Training mode switches on stochastic depth and the RoPE augmentation (rngs "drop_path" and "rope", the latter drawn
    once per forward and group; the reference redraws it in every block) and the separate local norm.

    The three generations are configurations: positions are learned (DINO, DINOv2) or rotary (DINOv3). Published sizes
    are in `variants.VIT_VARIANTS`: `VisionTransformer(**VIT_VARIANTS["dinov3_vitl16"])`.

    Attributes:
      ffn: "mlp" (GELU) or "swiglu", of hidden width `ffn_ratio * width`, for SwiGLU two thirds of it rounded up to a
        multiple of `ffn_align`.
      norm: "layernorm" or "rmsnorm".
      layer_scale: initial gain of LayerScale; 0 has none.
      mask_key_bias: hold the key part of the qkv bias at zero.
      masking: whether patches can be masked, by a mask token; those of DINO cannot.
      pos_grid: side of the learned position embedding's grid (image side / patch it was made for), which is resized to
        other grids; 0 has rotary positions.
      pos_offset: added to the wanted grid's sides in computing the scale of that resize, 0.1 in DINO and DINOv2, which
        shifts positions a little; 0 maps the whole grid onto the whole image.
      pos_antialias: widen the resize's kernel when shrinking.
      rope_base: periods are its powers; None spaces them between `rope_min_period` and `rope_max_period`.
      rope_normalize: "separate", "max" or "min", see `rope.coordinates`.
      rope_shift, rope_jitter, rope_rescale: see `rope.augment`; 0, 1 and 1 are off.
      untie_cls_and_patch_norms: CLS and registers get their own final norm.
      untie_global_and_local_norms: in training, CLS and registers of the group "local" get their own final norm.
      drop_path: rate of stochastic depth: share of each batch that skips a residual branch, the same in every block.
      drop_path_ramp: the rate rises linearly from 0 in the first block to `drop_path` in the last, and samples skip
        independently (DINO), which saves no time.
      shards: data shards of the mesh, each of which draws its own stochastic-depth subset.
      remat: what the backward pass recomputes, a key of `REMAT_POLICIES`.
      attention: "xla" (plain products) or "cudnn" (fused, by `jax.nn.dot_product_attention`; NVIDIA GPUs, bfloat16).
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    ffn: str
    ffn_ratio: float
    ffn_align: int
    registers: int
    norm: str
    norm_epsilon: float
    layer_scale: float
    qkv_bias: bool
    in_channels: int
    mask_key_bias: bool = False
    untie_cls_and_patch_norms: bool = False
    untie_global_and_local_norms: bool = False
    masking: bool = True
    pos_grid: int = 0
    pos_offset: float = 0.0
    pos_antialias: bool = False
    rope_base: float | None = None
    rope_min_period: float | None = None
    rope_max_period: float | None = None
    rope_normalize: str = "separate"
    proj_bias: bool = True
    ffn_bias: bool = True
    drop_path: float = 0.0
    drop_path_ramp: bool = False
    rope_shift: float = 0.0
    rope_jitter: float = 1.0
    rope_rescale: float = 1.0
    shards: int = 1
    remat: str = "none"
    attention: str = "xla"
    dtype: Any = jnp.float32

    def grid(self, image_size: tuple[int, ...], layer: int = -1) -> tuple[int, int]:
        """Returns rows and columns of the patches of an image of `image_size` (height, width) pixels, in any layer."""
        del layer
        height, width = image_size
        return height // self.patch_size, width // self.patch_size

    def token_count(self, side: int) -> int:
        """Returns how many tokens a square image of `side` pixels has: CLS, registers and patches."""
        return 1 + self.registers + (side // self.patch_size) ** 2

    @property
    def hidden(self) -> int:
        """Width of the feed-forward's hidden layer."""
        if self.ffn == "swiglu":
            return layers.swiglu_hidden(self.width, self.ffn_ratio, self.ffn_align)
        return int(self.width * self.ffn_ratio)

    def block_options(self) -> dict[str, Any]:
        """Returns the constructor arguments of one block."""
        shared = ["width", "heads", "ffn", "norm", "norm_epsilon", "layer_scale", "qkv_bias", "mask_key_bias"]
        shared += ["proj_bias", "ffn_bias", "drop_path", "shards", "dtype", "attention"]
        if self.ffn not in ("mlp", "swiglu"):
            raise ValueError(f"ffn = {self.ffn!r} is not one of 'mlp', 'swiglu'")
        return {name: getattr(self, name) for name in [*shared, "hidden"]}

    def setup(self):
        self.patch_embed = PatchEmbed(self.patch_size, self.in_channels, self.width, self.dtype)
        self.cls_token = self.param("cls_token", layers.normal_init, (self.width,))
        if self.registers:
            self.register_tokens = self.param("registers", layers.normal_init, (self.registers, self.width))
        if self.masking:
            self.mask_token = self.param("mask_token", nn.initializers.zeros, (self.width,))
        if self.pos_grid:
            if self.rope_base is not None:
                raise ValueError(
                    f"pos_grid = {self.pos_grid} excludes rope_base = {self.rope_base}: choose one kind of positions"
                )
            self.pos_embed = self.param("pos_embed", layers.normal_init, (1 + self.pos_grid**2, self.width))
        block = Block
        for option, value, known in (("remat", self.remat, REMAT_POLICIES), ("attention", self.attention, ATTENTIONS)):
            if value not in known:
                raise ValueError(f"{option} = {value!r} is not one of {', '.join(known)}")
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False, static_argnums=(3, 4))
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "drop_path": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0, nn.broadcast),
            length=self.depth,
            check_constancy_invariants=False,  # it traces every block twice
        )(**self.block_options())
        options: dict[str, Any] = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        self.norm_all = layers.norm(self.norm, **options, name="norm")
        if self.untie_cls_and_patch_norms:
            self.cls_norm = layers.norm(self.norm, **options, name="cls_norm")
        if self.untie_global_and_local_norms:
            self.local_cls_norm = layers.norm(self.norm, **options, name="local_cls_norm")

    def __call__(
        self,
        groups: Mapping[str, Array],
        masks: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
        collect: bool = False,
    ) -> dict[str, dict[str, Array]]:
        """Computes the tokens of every crop group.

        Args:
          groups: by name, normalised images `(batch, height, width, in_channels)`; sides are multiples of the patch.
          masks: by name, bool `(batch, patches)`: patches replaced by the mask token before the blocks.
          collect: also return the output of every block.

        Returns:
          By name: "cls" `(batch, dim)`, "registers" `(batch, registers, dim)`, "patches" `(batch, patches, dim)`, all
          after the final norm; "prenorm" `(batch, tokens, dim)`; with `collect`, "blocks" `(depth, batch, tokens,
          dim)`, before the norm.

        Raises:
          ValueError: if an image side is not a multiple of the patch, or a model without mask token is given masks.
        """
        masks = masks or {}
        tokens = {name: self.embed(images, masks.get(name)) for name, images in groups.items()}
        ropes = {name: self.rope_table(images.shape[1:3], train) for name, images in groups.items()}
        rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32) if self.drop_path_ramp else None
        tokens, ropes, lengths = self.fill_up(tokens, ropes)
        tokens, blocks = self.blocks(tokens, ropes, train, collect, rates, lengths)
        tokens = {name: x[:, : lengths[name]] for name, x in tokens.items()}
        out = {name: self.final_norm(x, local=train and name == "local") for name, x in tokens.items()}
        if self.is_initializing() and self.untie_global_and_local_norms:
            self.local_cls_norm(tokens["global"][:, :1])
        if collect:
            out = {name: out[name] | {"blocks": blocks[name][:, :, : lengths[name]]} for name in out}
        return out

    def entrance(self, images: Array) -> tuple[Array, layers.Table | None, int | None]:
        """Returns what enters the first block, in inference: tokens `(batch, tokens, width)`, their rotations, and how
        many of the tokens are attended to, if not all."""
        tokens, tables, lengths = self.fill_up(
            {"global": self.embed(images)}, {"global": self.rope_table(images.shape[1:3], False)}
        )
        return tokens["global"], tables["global"], lengths["global"]

    def fill_up(
        self, tokens: dict[str, Array], ropes: dict[str, layers.Table | None]
    ) -> tuple[dict[str, Array], dict[str, layers.Table | None], dict[str, int | None]]:
        """Adds a last token, of zeros, where "cudnn" attention would have an odd number of them.

        Returns:
          (tokens, their rotations, how many of them are attended to if not all).
        """
        if self.attention != "cudnn":
            return tokens, ropes, dict.fromkeys(tokens)
        odd = {name: x.shape[1] % 2 for name, x in tokens.items()}
        attended = {name: x.shape[1] if odd[name] else None for name, x in tokens.items()}
        tokens = {name: jnp.pad(x, ((0, 0), (0, odd[name]), (0, 0))) for name, x in tokens.items()}
        ropes = {name: table and rope.with_unrotated(table, after=odd[name]) for name, table in ropes.items()}
        return tokens, ropes, attended

    def embed(self, images: Array, mask: Array | None = None) -> Array:
        """Turns images into tokens `(batch, 1 + registers + patches, width)`: [CLS, registers, patches]."""
        patches = self.patch_embed(images)
        if mask is not None:
            if not self.masking:
                raise ValueError("masks need a mask token, which this model does not have: build it with masking=True")
            patches = jnp.where(mask[..., None], self.mask_token, patches).astype(patches.dtype)
        prefix = [self.cls_token[None]]
        if self.pos_grid:
            # Registers have no position.
            positions = self.learned_positions(images.shape[1:3])
            prefix, patches = [prefix[0] + positions[:1]], layers.plus(patches, positions[1:])
        if self.registers:
            prefix.append(self.register_tokens)
        batch = patches.shape[0]
        # What all samples share is spread in float32, in which its gradient is summed then.
        first = [jnp.broadcast_to(token, (batch, *token.shape)).astype(patches.dtype) for token in prefix]
        return jnp.concatenate([*first, patches], axis=1)

    def learned_positions(self, image_size: tuple[int, ...]) -> Array:
        """Returns the position embedding `(1 + patches, width)`, CLS first, of an image of (height, width) pixels."""
        grid = self.grid(image_size)
        native = self.pos_grid
        if grid == (native, native):
            return self.pos_embed
        rows, columns = (
            # The references sample at the scale (side + offset) / native, of which only `side` positions are taken.
            resize.resize_matrix(
                native, side, antialias=self.pos_antialias, method="bicubic", stride=native / (side + self.pos_offset)
            )
            for side in grid
        )
        square = self.pos_embed[1:].reshape(1, native, native, self.width)
        resized = resize.apply_matrices(square, rows, columns).reshape(-1, self.width)
        return jnp.concatenate([self.pos_embed[:1], resized])

    def rope_table(self, image_size: tuple[int, ...], train: bool) -> layers.Table | None:
        """Returns the (sin, cos) tables for all tokens of an image of `image_size` (height, width) pixels; None where
        positions are learned."""
        if self.pos_grid:
            return None
        coords = jnp.asarray(rope.coordinates(*self.grid(image_size), normalize=self.rope_normalize))
        box = {"shift": self.rope_shift, "jitter": self.rope_jitter, "rescale": self.rope_rescale}
        if train and (self.rope_shift, self.rope_jitter, self.rope_rescale) != (0.0, 1.0, 1.0):
            coords = rope.augment(coords, self.make_rng("rope"), **box)
        periods = rope.periods(
            self.width // self.heads,
            base=self.rope_base,
            min_period=self.rope_min_period,
            max_period=self.rope_max_period,
        )
        return rope.with_unrotated(rope.tables(coords, periods), before=1 + self.registers)

    def final_norm(self, x: Array, *, local: bool = False) -> dict[str, Array]:
        """Applies to tokens `(batch, tokens, width)` the norm of each kind; `local` for a local crop in training."""
        first, patches = x[:, : 1 + self.registers], x[:, 1 + self.registers :]
        first_norm = self.cls_norm if self.untie_cls_and_patch_norms else self.norm_all
        if local and self.untie_global_and_local_norms:
            first_norm = self.local_cls_norm
        first = first_norm(first)
        return {"cls": first[:, 0], "registers": first[:, 1:], "patches": self.norm_all(patches), "prenorm": x}
