"""What a step minimises: targets from the stop-gradient teachers, and the loss terms of DINO, DINOv2 and DINOv3.

DINO (arXiv 2104.14294) has its first term alone; DINOv2 (2304.07193) adds iBOT and KoLeo, DINOv3 (2508.10104) Gram.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dino_jax.losses.dino import crop_weights, dino_loss
from dino_jax.losses.gram import Negatives, gram_loss
from dino_jax.losses.ibot import ibot_loss
from dino_jax.losses.koleo import koleo_loss
from dino_jax.losses.targets import sinkhorn_knopp, softmax_center, update_center
from dino_jax.models.resize import resize_patches
from dino_jax.state import Centers, Networks, Params, TrainState

Batch = Mapping[str, Array]
Targets = Literal["sinkhorn_knopp", "centering"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights and options of the loss terms.

    Attributes:
      student_temperature: by which the student's scores are divided; the teacher's temperature is a schedule.
      targets: how teacher scores become probabilities: "sinkhorn_knopp" (`sinkhorn_iterations`), or "centering" with
        sharpening (`center_momentum` of the running mean).
      dino, ibot, koleo: weights of the losses; 0 switches one off. Without iBOT there are no masks, and its head is
        unused.
      koleo_topk: nearest neighbours that each sample is driven away from.
      koleo_group_size: samples among which they are sought; None for the whole batch.
      gram: whether there is a Gram term; its weight is a schedule.
      gram_antialias: whether the Gram teacher's patches are shrunk to the student's grid with a widened kernel.
      gram_image_level: compare the patches of each image, or else those of the whole batch.
      gram_remove_negatives: whose negative similarities count as zero, see `losses.gram`.
      gram_tokens: "all", or only "masked" or "unmasked" patches of the student's view.
      gram_stats: also report the Gram loss over masked and over unmasked patches, over the whole batch.
    """

    student_temperature: float
    targets: Targets
    sinkhorn_iterations: int
    center_momentum: float
    dino: float
    ibot: float
    koleo: float
    koleo_topk: int
    koleo_group_size: int | None
    gram: bool
    gram_antialias: bool
    gram_image_level: bool
    gram_remove_negatives: Negatives
    gram_tokens: str
    gram_stats: bool


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


def teacher_outputs(
    networks: Networks, teacher: Params, batch: Batch, stats: Params | None
) -> tuple[dict[str, Array], Params | None]:
    """Runs the teacher on the unmasked global crops.

    Returns:
      (outputs, statistics of BatchNorm after them, see `state.Networks.features`). Outputs are "cls" `(batch, views,
      dim)`, "patches" `(batch * views, patches, dim)`, and prototype scores "dino" `(batch * views, prototypes)`, and,
      of a batch with masks, "ibot" `(masked patches with padding, prototypes)`.
    """
    tokens, stats = networks.features(teacher, stats, {"global": flat(batch["global_crops"])})
    out = tokens["global"]
    logits = {
        "cls": out["cls"].reshape(*batch["global_crops"].shape[:2], -1),
        "patches": out["patches"],
        "dino": networks.dino_logits(teacher, out["cls"]),
    }
    if "masks" in batch:
        logits["ibot"] = networks.ibot_logits(teacher, masked_rows(out["patches"], batch["mask_indices"]))
    return logits, stats


def targets(
    networks: Networks, state: TrainState, batch: Batch, objective: Objective, temperature: Array
) -> tuple[dict[str, Array], Centers, Params | None]:
    """Computes the teacher's targets, into which no gradient flows.

    Returns:
      (targets, centers after this batch, the teacher's statistics of BatchNorm after it). The targets are
      probabilities, "dino" `(batch, views, prototypes)` and with iBOT "ibot" `(masked patches with padding,
      prototypes)`; with a Gram teacher "gram" `(batch * views, patches, dim)`, its patches on the student's grid.
    """
    logits, stats = teacher_outputs(networks, state.teacher, batch, state.stats("teacher"))
    scores = {"dino": logits["dino"]} | ({"ibot": logits["ibot"]} if objective.ibot else {})
    weights = {"ibot": batch["mask_weights"].reshape(-1)} if objective.ibot else {}
    out, centers = probabilities(scores, weights, state.centers, objective, temperature)
    out["dino"] = out["dino"].reshape(*batch["global_crops"].shape[:2], -1)
    if objective.gram:
        assert state.gram_teacher is not None
        out["gram"] = gram_targets(networks, state.gram_teacher, batch, antialias=objective.gram_antialias)
    return *jax.lax.stop_gradient((out, centers)), stats


def probabilities(
    scores: dict[str, Array],
    weights: Mapping[str, Array],
    centers: Centers,
    objective: Objective,
    temperature: Array,
) -> tuple[dict[str, Array], Centers]:
    """Turns teacher scores into target probabilities, of the same names and shapes.

    Args:
      scores: by name `(samples, prototypes)`.
      weights: by name `(samples,)`, 0 on padding; names that are absent have none.
      centers: by name `(prototypes,)`; None unless the targets are centered.

    Returns:
      (probabilities, centers). The probabilities use the centers from before this batch, as DINO does; DINOv2, which
      applies each update when the next batch comes, computes the same.
    """
    if objective.targets == "sinkhorn_knopp":
        iterations = objective.sinkhorn_iterations
        return {
            name: sinkhorn_knopp(x, temperature, iterations=iterations, weights=weights.get(name))
            for name, x in scores.items()
        }, centers
    assert centers is not None
    out = {name: softmax_center(x, centers[name], temperature) for name, x in scores.items()}
    return out, centers | {
        name: update_center(centers[name], x, momentum=objective.center_momentum, weights=weights.get(name))
        for name, x in scores.items()
    }


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
    stats: Params | None,
    batch: Batch,
    target: dict[str, Array],
    objective: Objective,
    hyper: Mapping[str, Array],
    rngs: Mapping[str, Array],
) -> tuple[Array, tuple[dict[str, Array], Array, Params | None]]:
    """Runs the student on all crops and adds up the weighted terms.

    Returns:
      (total, ({name: unweighted term}, per sample whether all its CLS tokens are finite, bool `(batch,)`, the student's
      statistics of BatchNorm after the crops)).
    """
    # 1. One pass over the weights for masked global and for local crops.
    crops = {"global": flat(batch["global_crops"]), "local": flat(batch["local_crops"])}
    masks = {"global": flat(batch["masks"])} if objective.ibot else {}
    out, stats = networks.features(student, stats, crops, masks, train=True, rngs=dict(rngs))
    samples, views = batch["global_crops"].shape[:2]
    global_cls, local_cls = (out[name]["cls"].reshape(samples, -1, out[name]["cls"].shape[-1]) for name in crops)
    # 2. The terms.
    terms = crop_terms(networks, student, global_cls, local_cls, target["dino"], objective)
    if objective.ibot:
        terms["ibot"] = ibot_loss(
            networks.ibot_logits(student, masked_rows(out["global"]["patches"], batch["mask_indices"])),
            target["ibot"],
            batch["mask_weights"].reshape(-1),
            images=samples * views,
            student_temperature=objective.student_temperature,
        )
    if objective.gram:
        terms |= gram_terms(out["global"]["patches"], target["gram"], masks.get("global"), objective)
    # 3. Their sum: pairs of crops weigh alike; KoLeo counts once per global crop.
    global_weight, local_weight = crop_weights(global_crops=views, local_crops=local_cls.shape[1], ignore_diagonal=True)
    weights: dict[str, Any] = {
        "dino_global": objective.dino * global_weight,
        "dino_local": objective.dino * local_weight * hyper["local_weight"],
        "ibot": objective.ibot,
        "koleo": objective.koleo * views,
        "gram": hyper["gram_weight"],
    }
    total = jnp.float32(0)
    for name, weight in weights.items():
        if name in terms:
            total += weight * terms[name]
    finite = jnp.isfinite(global_cls).all((1, 2)) & jnp.isfinite(local_cls).all((1, 2))
    return total, ({"total": total} | terms, finite, stats)


def crop_terms(
    networks: Networks, student: Params, global_cls: Array, local_cls: Array, target: Array, objective: Objective
) -> dict[str, Array]:
    """Computes the terms on whole crops: DINO on global and on local ones, and KoLeo.

    Args:
      global_cls, local_cls: the student's CLS tokens `(batch, views, dim)`.
      target: probabilities `(batch, global views, prototypes)`.
    """
    temperature, size = objective.student_temperature, objective.koleo_group_size
    # In one pass over the prototypes, whose gradient is as large as they are.
    logits = networks.dino_logits(student, jnp.concatenate([global_cls, local_cls], axis=1))
    global_logits, local_logits = jnp.split(logits, [global_cls.shape[1]], axis=1)
    terms = {
        "dino_global": dino_loss(global_logits, target, student_temperature=temperature, ignore_diagonal=True),
        "dino_local": dino_loss(local_logits, target, student_temperature=temperature),
    }
    if objective.koleo:
        views = range(global_cls.shape[1])
        koleo = [koleo_loss(global_cls[:, v], topk=objective.koleo_topk, group_size=size) for v in views]
        terms["koleo"] = sum(koleo, start=jnp.float32(0)) / len(views)
    return terms


def gram_terms(student: Array, teacher: Array, masks: Array | None, objective: Objective) -> dict[str, Array]:
    """Computes the Gram term, and with `gram_stats` those over masked and unmasked patches, which carry no gradient."""
    negatives = objective.gram_remove_negatives
    subsets = {"all": None} if masks is None else {"all": None, "masked": masks, "unmasked": ~masks}
    terms = {
        "gram": gram_loss(
            student,
            teacher,
            image_level=objective.gram_image_level,
            remove_negatives=negatives,
            token_mask=subsets[objective.gram_tokens],
        )
    }
    if objective.gram_stats:
        for name in ("masked", "unmasked"):
            fixed = jax.lax.stop_gradient(student)
            terms[f"gram_{name}"] = gram_loss(
                fixed, teacher, image_level=False, remove_negatives=negatives, token_mask=subsets[name]
            )
    return terms
