"""What must hold within one phase of a run."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from dino_jax.data.crops import GLOBAL_NUMBER
from dino_jax.models.vit import REMAT_POLICIES
from dino_jax.phases import by_size
from dino_jax.validate.rules import (
    ABOVE_0,
    BELOW_1,
    NOT_NEGATIVE,
    SHARE,
    Rule,
    largest,
    not_multiple,
    single_patch,
    values,
)

CHOICES: dict[str, tuple] = {
    "remat": ("", *REMAT_POLICIES),
    "targets": ("sinkhorn_knopp", "centering"),
    "optim.name": ("adamw", "sgd"),
    "optim.clip": ("module", "tensor"),
    "gram.remove_negatives": ("none", "both", "teacher"),
    "gram.tokens": ("all", "masked", "unmasked"),
    "optim.lr_scaling": ("none", "linear_wrt_256", "sqrt_wrt_1024"),
}
RULES: tuple[Rule, ...] = (
    (
        *ABOVE_0,
        "steps crops.global_size crops.local_size crops.local_number masks.group_size loss.koleo_topk "
        "student_temperature sinkhorn_iterations optim.clip_norm",
    ),
    (
        *NOT_NEGATIVE,
        "snapshot_every loss.dino loss.ibot loss.koleo loss.koleo_group_size optim.freeze_last_layer "
        "gram.crop_size gram.refresh_every gram.first_refresh gram.max_refreshes",
    ),
    (lambda v: v >= 2, "2 or more", "batch_size"),
    (lambda v: v >= -1, "-1 or more", "optim.freeze_backbone"),
    (*SHARE, "center_momentum masks.probability optim.layer_decay optim.patch_embed_multiplier"),
    (*BELOW_1, "optim.b1 optim.b2"),
)
OWN_TEACHERS = ("none", "ema", "best_dense")
MOST_PATCHES_COMPARED = 2**15  # 4 GiB of similarities


def phase_problems(name: str, p: ConfigDict, patch: int, known_snapshots: set[str]) -> Iterator[str]:
    """Finds what is wrong with a phase.

    Args:
      name: of the phase.
      patch: side of a patch in pixels.
      known_snapshots: the Gram teachers that earlier phases save, as "gram_teacher/STEP".
    """
    prefix = f"phases.{name}."
    yield from values(p, prefix, CHOICES, RULES)
    yield from _schedule_problems(prefix, p)
    yield from _snapshot_problems(prefix, p)
    if p.optim.last_layer_rests and not p.optim.freeze_last_layer:
        yield f"{prefix}optim.last_layer_rests = True has no effect with freeze_last_layer = 0: change one of them"
    yield from _sized_problems(prefix, p, patch, known_snapshots)
    yield from _mixture_problems(f"{prefix}crops.mixture", p, patch, known_snapshots)


def _sized_problems(prefix: str, p: ConfigDict, patch: int, known_snapshots: set[str]) -> Iterator[str]:
    """Finds what is wrong with a phase at one size of its crops."""
    for key, size in (
        ("crops.global_size", p.crops.global_size),
        ("crops.local_size", p.crops.local_size),
        ("gram.crop_size", p.gram.crop_size),
    ):
        yield from not_multiple(f"{prefix}{key}", size, patch)
    yield from single_patch(f"{prefix}crops.global_size", p.crops.global_size, patch)
    for key, (low, high) in (
        ("crops.global_scale", p.crops.global_scale),
        ("crops.local_scale", p.crops.local_scale),
        ("masks.ratio", p.masks.ratio),
    ):
        if not 0 <= low <= high <= 1 or not high:
            yield f"{prefix}{key} = {(low, high)} must be two shares, 0 <= low <= high <= 1, and high above 0"
    if not (p.loss.dino or p.loss.ibot or p.loss.koleo or p.gram.teacher != "none"):
        yield f"{prefix}loss.dino, ibot and koleo are all 0: nothing would be learnt, set one of them above 0"
    group = p.loss.koleo_group_size or p.batch_size
    if p.loss.koleo and (p.batch_size % group or p.loss.koleo_topk >= group):
        yield (
            f"{prefix}loss.koleo_group_size = {group} must divide the batch of {p.batch_size} and exceed "
            f"loss.koleo_topk = {p.loss.koleo_topk}: use 0, which is the whole batch, or another divisor"
        )
    if p.loss.ibot:
        yield from _mask_problems(prefix, p, patch)
    yield from _gram_problems(f"{prefix}gram.", p, patch, known_snapshots)


def _mask_problems(prefix: str, p: ConfigDict, patch: int) -> Iterator[str]:
    if p.batch_size % p.masks.group_size:
        yield (
            f"{prefix}masks.group_size = {p.masks.group_size} does not divide {prefix}batch_size = {p.batch_size}: "
            "use a divisor of what one device holds"
        )
    if int(GLOBAL_NUMBER * p.masks.group_size * p.masks.probability) < 1:
        yield (
            f"{prefix}masks.probability = {p.masks.probability:g} leaves none of the "
            f"{GLOBAL_NUMBER * p.masks.group_size} crops of a group masked, so iBOT has no patches to predict: raise "
            f"it, or set {prefix}loss.ibot to 0 as well"
        )
    patches = (p.crops.global_size // patch) ** 2
    if int(patches * p.masks.ratio[1]) < 1:
        yield (
            f"{prefix}masks.ratio = {tuple(p.masks.ratio)} of {patches} patches is less than one, so iBOT has none to "
            f"predict: raise it, or set {prefix}loss.ibot to 0 as well"
        )


def _schedule_problems(prefix: str, p: ConfigDict) -> Iterator[str]:
    for name in ("lr", "weight_decay", "momentum", "local_weight", "gram_weight"):
        s = p.schedules[name]
        if min(s.start, s.peak, s.end) < 0 or (name == "momentum" and max(s.start, s.peak, s.end) > 1):
            allowed = "between 0 and 1" if name == "momentum" else "0 or more"
            yield f"{prefix}schedules.{name} (start {s.start:g}, peak {s.peak:g}, end {s.end:g}) must be {allowed}"
    temperature = p.schedules.teacher_temperature
    if min(temperature.start, temperature.peak, temperature.end) <= 0:
        yield f"{prefix}schedules.teacher_temperature must stay above 0: it divides the teacher's scores"
    for name, s in p.schedules.items():
        if s.warmup < 0 or s.cosine < 0 or s.warmup + s.cosine > p.steps:
            yield (
                f"{prefix}schedules.{name}: warmup = {s.warmup} and cosine = {s.cosine} do not fit into "
                f"{prefix}steps = {p.steps}: lower them too"
            )


def _snapshot_problems(prefix: str, p: ConfigDict) -> Iterator[str]:
    for step in p.snapshot_steps:
        if not (isinstance(step, int) and 0 < step <= p.steps):
            yield (
                f"{prefix}snapshot_steps = {p.snapshot_steps}: {step} is not within 1..{p.steps}, the phase's steps: "
                "change it, and the gram.teacher of the phase that begins with that snapshot"
            )


def _mixture_problems(key: str, p: ConfigDict, patch: int, known_snapshots: set[str]) -> Iterator[str]:
    """Finds what is wrong with the further crop sizes of a phase, each of which must be valid as its only one."""
    rows = p.crops.mixture
    for row in rows:
        if not (isinstance(row, tuple) and [type(value) for value in row] in ([float, int, int, int], [int] * 4)):
            yield (
                f"{key} = {rows}: {row!r} must be (share of the batches, global_size, local_size, gram.crop_size), "
                "such as (0.3, 768, 112, 1152)"
            )
        if row[0] <= 0:
            yield f"{key} = {rows}: the share {row[0]:g} must be above 0"
        if bool(row[3]) != bool(p.gram.crop_size):
            yield (
                f"{key} = {rows} and gram.crop_size = {p.gram.crop_size}: give the Gram teacher a size of its own with "
                "every size of the crops or with none (0)"
            )
    if rows and sum(row[0] for row in rows) >= 1:
        yield f"{key} = {rows}: the shares must leave some batches to crops.global_size: their sum must be below 1"
    for _, sized in by_size(p)[1:]:
        yield from values(sized, f"{key}: ", CHOICES, RULES)
        yield from _sized_problems(f"{key}: ", sized, patch, known_snapshots)


def _gram_problems(prefix: str, p: ConfigDict, patch: int, known_snapshots: set[str]) -> Iterator[str]:
    if p.gram.teacher == "none" and largest(p.schedules.gram_weight) > 0:
        yield f"{prefix}teacher = 'none' but schedules.gram_weight is not 0: name a Gram teacher, such as 'ema'"
    if p.gram.teacher not in OWN_TEACHERS and "/" not in p.gram.teacher:
        yield (
            f"{prefix}teacher = {p.gram.teacher!r} must be one of {', '.join(OWN_TEACHERS)}, gram_teacher/STEP of this "
            "run, or the folder of another run's snapshot, such as runs/other/gram_teacher/STEP"
        )
    if not p.loss.ibot and (p.gram.tokens != "all" or p.gram.stats):
        yield (
            f"{prefix}tokens = {p.gram.tokens!r} and stats = {p.gram.stats} need masks, which loss.ibot = 0 does not "
            "have"
        )
    patches = GLOBAL_NUMBER * p.batch_size * (p.crops.global_size // patch) ** 2
    over_batch = "image_level = False" if not p.gram.image_level else "stats = True" if p.gram.stats else ""
    if over_batch and p.gram.remove_negatives != "none" and patches > MOST_PATCHES_COMPARED:
        yield (
            f"{prefix}{over_batch} with remove_negatives = {p.gram.remove_negatives!r} compares all {patches:,} "
            f"patches of a batch with each other, but at most {MOST_PATCHES_COMPARED:,} can be: change one of them"
        )
    if p.gram.max_refreshes and not p.gram.refresh_every:
        yield f"{prefix}max_refreshes = {p.gram.max_refreshes} has no effect with refresh_every = 0: set both or none"
    if p.gram.teacher.startswith("gram_teacher/") and p.gram.teacher not in known_snapshots:
        saved = ", ".join(sorted(known_snapshots)) or "none"
        yield (
            f"{prefix}teacher = {p.gram.teacher!r} is not a snapshot of an earlier phase of this run ({saved}): "
            "add its step to that phase's snapshot_steps, or give the folder of another run's snapshot"
        )
