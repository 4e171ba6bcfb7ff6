"""Measures whether a run is healthy, and says in words when it looks collapsed or starved.

The measures are pure functions on global arrays, for use under jit; `diagnose` reads the logged numbers on the host.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dino_jax.evals.quality import cls_patch_cosine, mean_pairwise_cosine, rankme

# A warning needs this many consecutive records, so that one odd batch causes none.
PATIENCE = 3
# Of the softmax of the teacher's logits; the same for every recipe, so that the limits below hold for all.
TEMPERATURE = 0.1
# Entropy of that softmax over log(prototypes). Prototypes drawn with standard deviation 0.02 on unit vectors give
# 0.998; above 0.999 a head tells images apart less than at random initialisation.
UNIFORM_ENTROPY = 0.999
ONE_HOT_ENTROPY = 0.01
# One-hot targets alone are legitimate (a confident teacher); with under 5 % of the prototypes that the batch could use,
# most images share a target, which is a collapse.
FEW_PROTOTYPES_SHARE = 0.05
# Features that vary along fewer than two directions cannot tell more than a handful of images apart.
COLLAPSED_RANK = 2.0
# A student that predicts the uniform distribution has a DINO loss of exactly log K; within 1 % of it over
# STUCK_RECORDS records nothing has been learnt.
STUCK_LOSS_SHARE = 0.01
STUCK_RECORDS = 10
# Dense-feature decay (DINOv3, section 4): the patches of an image become alike although they once were not.
DECAYED_COSINE = 0.7
DECAY_RISE = 0.25
# The share of the step spent waiting for data above which faster input pays more than anything else.
DATA_WAIT_SHARE = 0.3


def entropy(probs: jax.Array) -> jax.Array:
    """Returns the entropy in nats of distributions `(..., prototypes)` as `(...)`, float32; 0 log 0 counts as 0."""
    probs = probs.astype(jnp.float32)
    return -jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)


def prototypes(probs: jax.Array, valid: jax.Array | None = None) -> dict[str, jax.Array]:
    """Measures how a batch of teacher distributions uses the prototypes, as float32 scalars.

    Sinkhorn-Knopp spreads every batch evenly over the prototypes by construction, so give softmax probabilities of the
    teacher's logits to see the teacher itself.

    Args:
      probs: distributions `(samples, prototypes)`.
      valid: `(samples,)` bool or 0/1; padded samples are left out. Default: all are valid.

    Returns:
      `entropy`: mean entropy in nats; `entropy_share`: that over log(prototypes), 0 to 1; `used`: number of prototypes
      that are the most likely one of at least one sample; `used_share`: that over min(prototypes, samples);
      `effective`: exp(entropy of the mean distribution).
    """
    samples, count = probs.shape
    weights = jnp.ones(samples) if valid is None else valid.astype(jnp.float32)
    total = jnp.maximum(weights.sum(), 1.0)
    mean_entropy = jnp.sum(weights * entropy(probs)) / total
    used = jnp.zeros(count).at[jnp.argmax(probs, axis=-1)].max(weights).sum()
    return {
        "entropy": mean_entropy,
        "entropy_share": mean_entropy / math.log(max(count, 2)),
        "used": used,
        "used_share": used / jnp.minimum(count, total),
        "effective": jnp.exp(entropy(weights @ probs.astype(jnp.float32) / total)),
    }


def parameter_distance(student: Any, teacher: Any) -> jax.Array:
    """Returns the L2 norm of `student - teacher` over that of `teacher`, for two parameter trees of one structure."""
    difference = jax.tree.map(jnp.subtract, student, teacher)
    return optax.tree.norm(difference) / jnp.maximum(optax.tree.norm(teacher), jnp.finfo(jnp.float32).tiny)


def measure(
    *,
    cls: jax.Array,
    patches: jax.Array,
    student: Any,
    teacher: Any,
    dino_probs: jax.Array | None = None,
    ibot_probs: jax.Array | None = None,
    ibot_valid: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Combines all measures of this module into flat `health/...` float32 scalars.

    Args:
      cls: teacher CLS features `(images, dim)`, one view per image, so that alike ones mean collapse.
      patches: teacher patch features of the same images `(images, patches, dim)`.
      student, teacher: their parameter trees.
      dino_probs: teacher distributions over the DINO prototypes `(samples, prototypes)`.
      ibot_probs: the same for masked patches; `ibot_valid` `(samples,)` is 0 on padding.
    """
    values = {
        "rankme": rankme(cls),
        "cls_cosine": mean_pairwise_cosine(cls),
        "patch_cosine": mean_pairwise_cosine(patches),
        "cls_patch_cosine": cls_patch_cosine(cls, patches),
        "student_teacher_distance": parameter_distance(student, teacher),
    }
    for head, probs, valid in (("dino", dino_probs, None), ("ibot", ibot_probs, ibot_valid)):
        if probs is not None:
            values |= {f"{head}_{name}": value for name, value in prototypes(probs, valid).items()}
    return {f"health/{name}": value for name, value in values.items()}


def diagnose(records: Sequence[Mapping[str, float]], *, warmup_steps: int = 0) -> list[str]:
    """Says in words what looks wrong with a run, and which setting to look at; an empty list when nothing does.

    Args:
      records: of the run, each with its "step", the oldest first: the names of `measure`, `loss/dino...` terms and
        `throughput/data_wait_share`, whichever are there. A warning needs PATIENCE records in a row that agree.
      warmup_steps: no verdict before this step, as every run starts out with uniform outputs and alike features.
    """
    records = [record for record in records if record["step"] >= warmup_steps]
    metrics = records[-1] if records else {}

    def lasts(check: Callable[..., bool], *names: str, count: int = PATIENCE) -> bool:
        """Tells whether `check` holds for the last `count` records that have all of `names`."""
        with_names = [[record[name] for name in names] for record in records if all(name in record for name in names)]
        return len(with_names) >= count and all(check(*values) for values in with_names[-count:])

    found = [text for head in ("dino", "ibot") for text in _collapse(lasts, head)]
    if lasts(lambda rank: rank < COLLAPSED_RANK, "health/rankme"):
        found.append(
            f"features collapsed: effective rank {metrics.get('health/rankme', math.nan):.2f}, all images look alike; "
            "raise loss.koleo or lower the peak of schedules.lr"
        )
    for name in sorted(name for name in metrics if name.startswith("loss/dino")):
        if lasts(_loss_is_stuck, name, "health/dino_entropy", "health/dino_entropy_share", count=STUCK_RECORDS):
            found.append(
                f"{name} is stuck at log(prototypes): the student predicts the uniform distribution; "
                "look at the warm-up and peak of schedules.lr, and at schedules.teacher_temperature"
            )
    if _patches_decay(records):
        found.append(
            f"dense features decay: cosine between the patches of an image rose to "
            f"{records[-1]['health/patch_cosine']:.2f}; add a phase whose gram.teacher is an earlier snapshot"
        )
    found = [f"{text} (in a new workdir)" for text in found]  # a run keeps to its recipe
    if lasts(lambda share: share > DATA_WAIT_SHARE, "throughput/data_wait_share"):
        found.append(
            f"starved: {metrics.get('throughput/data_wait_share', math.nan):.0%} of the time is spent waiting for "
            "data; raise data.workers or store smaller images"
        )
    return found


def _collapse(lasts: Callable[..., bool], head: str) -> list[str]:
    """Describes a collapse of one head's teacher distributions."""
    share, used = f"health/{head}_entropy_share", f"health/{head}_used_share"
    if lasts(lambda value: value > UNIFORM_ENTROPY, share):
        return [
            f"{head} teacher collapsed to uniform: its entropy is log(prototypes), so targets say nothing; "
            "lower schedules.teacher_temperature"
        ]
    if lasts(lambda value, part: value < ONE_HOT_ENTROPY and part < FEW_PROTOTYPES_SHARE, share, used):
        return [
            f"{head} teacher collapsed to few prototypes: most samples share one target; "
            "raise schedules.teacher_temperature or loss.koleo"
        ]
    return []


def _loss_is_stuck(loss: float, entropy_nats: float, entropy_share: float) -> bool:
    """Tells whether a cross-entropy is that of a uniform student, with log(prototypes) = entropy / share."""
    if entropy_share <= 0:
        return False
    log_prototypes = entropy_nats / entropy_share
    return abs(loss - log_prototypes) < STUCK_LOSS_SHARE * log_prototypes


def _patches_decay(records: Sequence[Mapping[str, float]]) -> bool:
    """Tells whether the patches of an image have become alike after having been clearly different."""
    cosines = [record["health/patch_cosine"] for record in records if "health/patch_cosine" in record]
    recent, earlier = cosines[-PATIENCE:], cosines[:-PATIENCE]
    return bool(earlier) and min(recent) > max(DECAYED_COSINE, min(earlier) + DECAY_RISE)
