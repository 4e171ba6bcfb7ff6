"""Networks of one matrix product each, for tests of what is done with their outputs: nothing takes time to compile."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from dino_jax.state import Networks, TrainState

PATCH, WIDTH, PROTOTYPES = 8, 16, 64


@dataclasses.dataclass(frozen=True)
class LinearBackbone:
    """Projects patches; their mean is the CLS token."""

    patch_size: int = PATCH
    width: int = WIDTH

    def apply(self, variables, crops, masks=None, *, train=False, rngs=None):
        out = {}
        for name, images in crops.items():
            pixels = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=PATCH, q=PATCH)
            patches = pixels @ variables["params"]["patch_embed"]["kernel"]
            if masks and name in masks:
                patches = jnp.where(masks[name][..., None], variables["params"]["mask_token"], patches)
            out[name] = {"cls": patches.mean(1), "patches": patches}
        return out


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """Scores tokens."""

    prototypes: int = PROTOTYPES
    gain: str = "none"

    def apply(self, variables, tokens):
        return tokens @ variables["params"]["prototypes"]["kernel"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def networks():
    return Networks(LinearBackbone(), LinearHead(), LinearHead())


def params(seed):
    heads = {
        name: {"prototypes": {"kernel": normal(WIDTH, PROTOTYPES, seed=seed + n)}}
        for n, name in enumerate(("dino_head", "ibot_head"))
    }
    embed = {"kernel": 0.1 * normal(PATCH * PATCH * 3, WIDTH, seed=seed + 2)}
    return {"backbone": {"patch_embed": embed, "mask_token": normal(WIDTH, seed=seed + 3)}} | heads


def state(optimizer=None):
    """Returns a state whose teacher is not its student, and is its Gram teacher."""
    student, teacher = params(0), params(10)
    return TrainState(
        step=jnp.int32(0),
        student=student,
        teacher=teacher,
        optimizer=optimizer and optimizer.init(student),
        centers=None,
        batch_stats=None,
        gram_teacher=teacher["backbone"],
        skipped=jnp.int32(0),
        skipped_in_row=jnp.int32(0),
    )


def batch(*, padding=0):
    """Returns four images, a quarter of whose first global crops is masked, with so many entries of padding."""
    masks = np.zeros((4, 2, 16), bool)
    masks[:, 0, :4] = True
    return {
        "global_crops": normal(4, 2, 32, 32, 3, seed=20),
        "local_crops": normal(4, 3, 16, 16, 3, seed=21),
        "masks": masks,
        "mask_indices": np.append(np.flatnonzero(masks), np.zeros(padding))[None].astype(np.int32),
        "mask_weights": np.append(np.full(16, 0.25), np.zeros(padding))[None].astype(np.float32),
    }
