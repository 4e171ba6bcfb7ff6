"""What a step minimises: targets from the stop-gradient teachers, and the DINOv3 loss terms (sections 3.2 and 4.2)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from dino_jax.losses.dino import crop_weights, dino_loss
from dino_jax.losses.gram import Negatives, gram_loss
from dino_jax.losses.ibot import ibot_loss
from dino_jax.losses.koleo import koleo_loss
from dino_jax.losses.resize import resize_patches
from dino_jax.losses.targets import sinkhorn_knopp
from dino_jax.state import Networks, Params

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights and options of the loss terms.

    Attributes:
      koleo_group_size: samples among which nearest neighbours are sought; None for the whole batch.
      gram: whether there is a Gram term; its weight is a schedule.
      gram_tokens: "all", or only "masked" or "unmasked" patches of the student's view.
      gram_stats: also report the Gram loss over masked and over unmasked patches, over the whole batch.
    """

    student_temperature: float = 0.1
    sinkhorn_iterations: int = 3
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    koleo_topk: int = 1
    koleo_group_size: int | None = None
    gram: bool = False
    gram_antialias: bool = False
    gram_image_level: bool = True
    gram_remove_negatives: Negatives = "none"
    gram_tokens: str = "all"
    gram_stats: bool = False


def flat(crops: Array) -> Array:
    """Merges `(batch, views, ...)` to `(batch * views, ...)`, which moves nothing between devices."""
    return crops.reshape(-1, *crops.shape[2:])


def masked_rows(patches: Array, indices: Array) -> Array:
    """Picks the masked patches, group by group, so that none crosses devices.

    Args:
      patches: `(images, patches, dim)`.
      indices: int32 `(groups, bound)`, positions in the group's flattened `(images / groups * patches)`.

    Returns:
      `(groups * bound, dim)`.
    """
    groups = patches.reshape(len(indices), -1, patches.shape[-1])
    return jax.vmap(lambda rows, index: rows[index])(groups, indices).reshape(-1, patches.shape[-1])


def teacher_logits(networks: Networks, teacher: Params, batch: Batch) -> dict[str, Array]:
    """Runs the teacher on the unmasked global crops.

    Returns:
      "cls" `(batch, views, dim)`, "patches" `(batch * views, patches, dim)`, and prototype scores "dino"
      `(batch * views, prototypes)`, "ibot" `(masked patches with padding, prototypes)`.
    """
    out = networks.backbone.apply({"params": teacher["backbone"]}, {"global": flat(batch["global_crops"])})["global"]
    rows = masked_rows(out["patches"], batch["mask_indices"])
    return {
        "cls": out["cls"].reshape(*batch["global_crops"].shape[:2], -1),
        "patches": out["patches"],
        "dino": networks.dino_head.apply({"params": teacher["dino_head"]}, out["cls"])["logits"],
        "ibot": networks.ibot_head.apply({"params": teacher["ibot_head"]}, rows)["logits"],
    }


def targets(
    networks: Networks,
    teacher: Params,
    gram_teacher: Params | None,
    batch: Batch,
    objective: Objective,
    temperature: Array,
) -> dict[str, Array]:
    """Computes what the student shall predict; constants to it.

    Returns:
      "dino" `(batch, views, prototypes)` and "ibot" `(masked patches, prototypes)` probabilities, rows of padding 0;
      with a Gram teacher "gram" `(batch * views, patches, dim)`, its patches on the student's grid.
    """
    logits = teacher_logits(networks, teacher, batch)
    views = batch["global_crops"].shape[:2]
    iterations = objective.sinkhorn_iterations
    out = {
        "dino": sinkhorn_knopp(logits["dino"], temperature, iterations=iterations).reshape(*views, -1),
        "ibot": sinkhorn_knopp(
            logits["ibot"], temperature, iterations=iterations, weights=batch["mask_weights"].reshape(-1)
        ),
    }
    if objective.gram:
        assert gram_teacher is not None
        out["gram"] = gram_targets(networks, gram_teacher, batch, antialias=objective.gram_antialias)
    return jax.lax.stop_gradient(out)


def gram_targets(networks: Networks, gram_teacher: Params, batch: Batch, *, antialias: bool) -> Array:
    """Runs the Gram teacher on its view of the global crops; `(batch * views, patches, dim)` on the student's grid."""
    crops = batch.get("gram_crops", batch["global_crops"])
    patches = networks.backbone.apply({"params": gram_teacher}, {"global": flat(crops)})["global"]["patches"]
    patch = networks.backbone.patch_size
    grids = [(x.shape[2] // patch, x.shape[3] // patch) for x in (crops, batch["global_crops"])]
    return resize_patches(patches, *grids, antialias=antialias)


def loss_terms(
    networks: Networks,
    student: Params,
    batch: Batch,
    target: dict[str, Array],
    objective: Objective,
    hyper: Mapping[str, Array],
    rngs: Mapping[str, Array],
) -> tuple[Array, tuple[dict[str, Array], Array]]:
    """Runs the student on all crops and adds up the weighted terms.

    Returns:
      (total, ({name: unweighted term}, per sample whether all its features are finite, bool `(batch,)`)).
    """
    # 1. One pass over the weights for masked global and for local crops.
    crops = {"global": flat(batch["global_crops"]), "local": flat(batch["local_crops"])}
    masks = flat(batch["masks"])
    out = networks.backbone.apply(
        {"params": student["backbone"]}, crops, {"global": masks}, train=True, rngs=dict(rngs)
    )
    samples, views = batch["global_crops"].shape[:2]
    global_cls, local_cls = (out[name]["cls"].reshape(samples, -1, out[name]["cls"].shape[-1]) for name in crops)
    rows = masked_rows(out["global"]["patches"], batch["mask_indices"])
    # 2. Prototype scores.
    head = {"params": student["dino_head"]}
    global_logits, local_logits = (networks.dino_head.apply(head, x)["logits"] for x in (global_cls, local_cls))
    ibot_logits = networks.ibot_head.apply({"params": student["ibot_head"]}, rows)["logits"]
    # 3. The terms.
    temperature = objective.student_temperature
    group_size = objective.koleo_group_size
    koleo = [koleo_loss(global_cls[:, v], topk=objective.koleo_topk, group_size=group_size) for v in range(views)]
    terms = {
        "dino_global": dino_loss(global_logits, target["dino"], student_temperature=temperature, ignore_diagonal=True),
        "dino_local": dino_loss(local_logits, target["dino"], student_temperature=temperature),
        "ibot": ibot_loss(
            ibot_logits,
            target["ibot"],
            batch["mask_weights"].reshape(-1),
            images=samples * views,
            student_temperature=temperature,
        ),
        "koleo": sum(koleo, start=jnp.float32(0)) / views,
    }
    # 4. Their sum: pairs of crops weigh alike; KoLeo counts once per global crop.
    global_weight, local_weight = crop_weights(global_crops=views, local_crops=local_cls.shape[1], ignore_diagonal=True)
    total = (
        objective.dino * global_weight * terms["dino_global"]
        + objective.dino * local_weight * hyper["local_weight"] * terms["dino_local"]
        + objective.ibot * terms["ibot"]
        + objective.koleo * views * terms["koleo"]
    )
    if objective.gram:
        terms |= gram_terms(out["global"]["patches"], target["gram"], masks, objective)
        total += hyper["gram_weight"] * terms["gram"]
    finite = jnp.isfinite(global_cls).all((1, 2)) & jnp.isfinite(local_cls).all((1, 2))
    return total, ({"total": total} | terms, finite)


def gram_terms(student: Array, teacher: Array, masks: Array, objective: Objective) -> dict[str, Array]:
    """Computes the Gram term, and with `gram_stats` those over masked and unmasked patches, which carry no gradient."""
    subsets = {"all": None, "masked": masks, "unmasked": ~masks}
    terms = {
        "gram": gram_loss(
            student,
            teacher,
            image_level=objective.gram_image_level,
            remove_negatives=objective.gram_remove_negatives,
            token_mask=subsets[objective.gram_tokens],
        )
    }
    if objective.gram_stats:
        for name in ("masked", "unmasked"):
            fixed = jax.lax.stop_gradient(student)
            terms[f"gram_{name}"] = gram_loss(fixed, teacher, image_level=False, token_mask=subsets[name])
    return terms
