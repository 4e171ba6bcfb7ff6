"""Checks a whole configuration once, before any device is touched."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from dino_jax.models import ConvNext, VisionTransformer, network_class
from dino_jax.phases import by_size

CHOICES: dict[str, tuple] = {
    "precision": ("float32", "bfloat16"),
    "remat": ("none", "matmuls", "full"),
    "data.source": ("packaged", "folder", "tar", "arrayrecord"),
    "model.ffn": ("mlp", "swiglu"),
    "dino_head.gain": ("none", "frozen", "trained"),
    "ibot_head.gain": ("none", "frozen", "trained"),
    "model.norm": ("layernorm", "rmsnorm"),
    "model.attention": ("xla", "cudnn"),
    "model.in_channels": (3,),  # what photographs and their augmentation have
}
PHASE_CHOICES: dict[str, tuple] = {
    "targets": ("sinkhorn_knopp", "centering"),
    "masks.sizes": ("fixed", "drawn"),
    "optim.name": ("adamw", "sgd"),
    "optim.clip": ("module", "tensor"),
    "gram.remove_negatives": ("none", "both", "teacher"),
    "gram.tokens": ("all", "masked", "unmasked"),
    "optim.lr_scaling": ("none", "linear_wrt_256", "sqrt_wrt_1024"),
}
OWN_TEACHERS = ("none", "ema", "best_dense")
MOST_PATCHES_COMPARED = 2**15  # 4 GiB of similarities
Rule = tuple[Callable[[Any], bool], str, str]
"""What a value must be, in code and in words, and the keys of which that is true."""

ABOVE_0 = (lambda v: v > 0, "above 0")
NOT_NEGATIVE = (lambda v: v >= 0, "0 or more")
AT_LEAST_1 = (lambda v: v >= 1, "1 or more")
SHARE = (lambda v: 0 <= v <= 1, "between 0 and 1")
BELOW_1 = (lambda v: 0 <= v < 1, "0 or more and below 1")
RULES: tuple[Rule, ...] = (
    (
        *ABOVE_0,
        "model.patch_size model.width model.depth model.heads model.ffn_ratio model.ffn_align model.norm_epsilon "
        "model.rope_base dino_head.prototypes dino_head.hidden "
        "dino_head.bottleneck ibot_head.prototypes ibot_head.hidden ibot_head.bottleneck data.window_size "
        "data.windows_per_photograph checkpoint.every checkpoint.keep_last log.every log.health_every nonfinite_limit "
        "eval.size eval.knn.k eval.knn.images eval.dense.images eval.quality.images",
    ),
    (
        *NOT_NEGATIVE,
        "model.registers model.rope_shift data.workers checkpoint.keep_every eval.knn.every eval.dense.every "
        "eval.quality.every",
    ),
    (lambda v: 0 <= v < 2**32, "0 or more and below 2**32", "seed"),
    (*AT_LEAST_1, "model.rope_jitter model.rope_rescale"),
    (*SHARE, "data.max_bad_share"),
    (*BELOW_1, "model.drop_path"),
)
PHASE_RULES: tuple[Rule, ...] = (
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


def validate(config: ConfigDict) -> None:
    """Checks the values of a recipe and how they fit together.

    Raises:
      ValueError: naming the key, its value, what is allowed and the fix; the first problem found.
    """
    for problem in _problems(config):
        raise ValueError(problem)


def _problems(c: ConfigDict) -> Iterator[str]:
    yield from _values(c, "", CHOICES, RULES)
    for key in ("path", "test_path"):
        if c.data.source == "packaged" and c.data[key]:
            yield (
                f"data.{key} = {c.data[key]!r} has no effect with data.source = 'packaged', the photographs of an "
                "installed package: set data.source to folder, tar or arrayrecord"
            )
    yield from _check(c, "", "data.std", lambda v: min(v) > 0, "above 0 in each channel")
    if network_class(c.model) is VisionTransformer:
        yield from _multiple("eval.size", c.eval.size, c.model.patch_size)
        if c.model.width % c.model.heads:
            yield f"model.heads = {c.model.heads} must divide model.width = {c.model.width}"
        if c.model.width * c.model.ffn_ratio < 2:
            yield (
                f"model.ffn_ratio = {c.model.ffn_ratio:g} leaves the feed-forward layer without a channel: raise it, "
                "4 is usual"
            )
    if "rope_base" in c.model and c.model.width // c.model.heads % 4:
        yield (
            f"model.width = {c.model.width} over model.heads = {c.model.heads} must be a multiple of 4, "
            "which axial RoPE needs"
        )
    if not c.phase_order:
        yield "phase_order is empty: a recipe needs at least one phase, see dino_jax.config.set_phases"
    for name in c.phase_order:
        if name not in c.phases:
            yield f"phase_order names {name!r}, but phases holds {', '.join(sorted(c.phases)) or 'none'}"
    every, kept = c.checkpoint.every, c.checkpoint.keep_every
    if kept > 0 and every > 0 and kept % every:
        yield (
            f"checkpoint.keep_every = {kept} is not a multiple of checkpoint.every = {every}, at whose multiples "
            f"checkpoints are saved: use {max(every, round(kept / every) * every)}"
        )
    known_snapshots = {"gram_teacher/0"} if c.init.weights else set()
    start = 0
    for name in c.phase_order:
        patch = c.model.get("patch_size", 1)
        yield from _phase_problems(f"phases.{name}.", c.phases[name], patch)
        yield from _gram_problems(f"phases.{name}.gram.", c.phases[name], patch, known_snapshots)
        yield from _mixture_problems(f"phases.{name}.crops.mixture", c.phases[name], patch, known_snapshots)
        if c.phases[name].gram.teacher == "best_dense" and not (known_snapshots and c.eval.dense.path):
            yield (
                f"phases.{name}.gram.teacher = 'best_dense' chooses among the snapshots of earlier phases by their "
                "dense score: set snapshot_every of such a phase, and eval.dense.path to labelled images"
            )
        saved = {*c.phases[name].snapshot_steps, *_multiples(c.phases[name].snapshot_every, c.phases[name].steps)}
        known_snapshots |= {f"gram_teacher/{start + step}" for step in saved}
        start += c.phases[name].steps
    yield from _problems_between(c, [c.phases[name] for name in c.phase_order])


def _problems_between(c: ConfigDict, phases: list[ConfigDict]) -> Iterator[str]:
    """Finds what each phase may have, but not together with the others or with the networks."""
    with_ibot = any(p.loss.ibot for p in phases)
    if c.share_head and not with_ibot:
        yield "share_head = True has no effect with loss.ibot = 0 in all phases: change one of them"
    if with_ibot and not c.share_head and (c.dino_head.gain == "frozen") != (c.ibot_head.gain == "frozen"):
        yield (
            f"dino_head.gain = {c.dino_head.gain!r} and ibot_head.gain = {c.ibot_head.gain!r}: freeze both or none, as "
            "a trained gain decays and a frozen one must not"
        )
    if network_class(c.model) is not VisionTransformer:
        yield from _convolutional_problems(c, phases)
    if with_ibot and not c.model.get("masking", True):
        yield "loss.ibot needs a mask token, which model.masking = False does not have: change one of them"
    for name, p in zip(c.phase_order, phases, strict=True):
        weight = p.schedules.gram_weight
        if p.gram.teacher != "none" and not max(weight.start, weight.peak, weight.end):
            yield (
                f"phases.{name}.gram.teacher = {p.gram.teacher!r} has no effect with schedules.gram_weight = 0: "
                "change one of them"
            )
    names = [p.optim.name for p in phases]
    if len(set(names)) > 1:
        yield f"optim.name differs between phases ({', '.join(names)}): moments pass from one to the next, use one"


def _convolutional_problems(c: ConfigDict, phases: list[ConfigDict]) -> Iterator[str]:
    """Finds what only a transformer can do."""
    if any(p.loss.ibot for p in phases):
        yield "loss.ibot needs a transformer, whose patches can be masked: set it to 0 in all phases"
    if any(p.gram.teacher != "none" for p in phases):
        yield "gram.teacher needs a transformer: set it to 'none' in all phases"
    if c.remat != "none":
        yield f"remat = {c.remat!r} needs a transformer: set it to 'none'"
    if network_class(c.model) is ConvNext:
        patch = ConvNext(**c.model.to_dict()).patch_size
        sizes = {"eval.size": c.eval.size}
        for name, p in zip(c.phase_order, phases, strict=True):
            for key in ("global_size", "local_size"):
                sizes[f"phases.{name}.crops.{key}"] = min(sized.crops[key] for _, sized in by_size(p))
        for key, size in sizes.items():
            if size < patch:
                yield f"{key} = {size} is less than the {patch} px of a patch: enlarge it"


def _phase_problems(prefix: str, p: ConfigDict, patch: int) -> Iterator[str]:
    yield from _values(p, prefix, PHASE_CHOICES, PHASE_RULES)
    for key, size in (
        ("crops.global_size", p.crops.global_size),
        ("crops.local_size", p.crops.local_size),
        ("gram.crop_size", p.gram.crop_size),
    ):
        yield from _multiple(f"{prefix}{key}", size, patch)
    if p.crops.global_size <= patch:
        yield f"{prefix}crops.global_size = {p.crops.global_size} holds a single patch: use {2 * patch} or more"
    for key, (low, high) in (
        ("crops.global_scale", p.crops.global_scale),
        ("crops.local_scale", p.crops.local_scale),
        ("masks.ratio", p.masks.ratio),
    ):
        if not 0 <= low <= high <= 1 or not high:
            yield f"{prefix}{key} = {(low, high)} must be two shares, 0 <= low <= high <= 1, and high above 0"
    if not (p.loss.dino or p.loss.ibot or p.loss.koleo or p.gram.teacher != "none"):
        yield f"{prefix}loss.dino, ibot and koleo are all 0: nothing would be learnt, set one of them above 0"
    if p.loss.ibot and p.batch_size % p.masks.group_size:
        yield (
            f"{prefix}masks.group_size = {p.masks.group_size} does not divide {prefix}batch_size = {p.batch_size}: "
            "use a divisor of what one device holds"
        )
    if p.loss.ibot and int(2 * p.masks.group_size * p.masks.probability) < 1:
        yield (
            f"{prefix}masks.probability = {p.masks.probability:g} leaves none of the {2 * p.masks.group_size} crops of "
            f"a group masked, so iBOT has no patches to predict: raise it, or set {prefix}loss.ibot to 0 as well"
        )
    patches = (p.crops.global_size // patch) ** 2
    if p.loss.ibot and int(patches * p.masks.ratio[1]) < 1:
        yield (
            f"{prefix}masks.ratio = {tuple(p.masks.ratio)} of {patches} patches is less than one, so iBOT has none to "
            f"predict: raise it, or set {prefix}loss.ibot to 0 as well"
        )
    for name in ("lr", "weight_decay", "momentum", "local_weight", "gram_weight"):
        s = p.schedules[name]
        if min(s.start, s.peak, s.end) < 0 or (name == "momentum" and max(s.start, s.peak, s.end) > 1):
            allowed = "between 0 and 1" if name == "momentum" else "0 or more"
            yield f"{prefix}schedules.{name} (start {s.start:g}, peak {s.peak:g}, end {s.end:g}) must be {allowed}"
    temperature = p.schedules.teacher_temperature
    if min(temperature.start, temperature.peak, temperature.end) <= 0:
        yield f"{prefix}schedules.teacher_temperature must stay above 0: it divides the teacher's scores"
    group = p.loss.koleo_group_size or p.batch_size
    if p.loss.koleo and (p.batch_size % group or p.loss.koleo_topk >= group):
        yield (
            f"{prefix}loss.koleo_group_size = {group} must divide the batch of {p.batch_size} and exceed "
            f"loss.koleo_topk = {p.loss.koleo_topk}: use 0, which is the whole batch, or another divisor"
        )
    for name, s in p.schedules.items():
        if s.warmup < 0 or s.cosine < 0 or s.warmup + s.cosine > p.steps:
            yield (
                f"{prefix}schedules.{name}: warmup = {s.warmup} and cosine = {s.cosine} do not fit into "
                f"{prefix}steps = {p.steps}: lower them too"
            )
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
        yield from _phase_problems(f"{key}: ", sized, patch)
        yield from _gram_problems(f"{key}: gram.", sized, patch, known_snapshots)


def _gram_problems(prefix: str, p: ConfigDict, patch: int, known_snapshots: set[str]) -> Iterator[str]:
    weight = p.schedules.gram_weight
    if p.gram.teacher == "none" and max(weight.start, weight.peak, weight.end) > 0:
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
    patches = 2 * p.batch_size * (p.crops.global_size // patch) ** 2
    if not p.gram.image_level and p.gram.remove_negatives != "none" and patches > MOST_PATCHES_COMPARED:
        yield (
            f"{prefix}image_level = False with remove_negatives = {p.gram.remove_negatives!r} compares all {patches:,} "
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


def _multiple(key: str, size: int, patch: int) -> Iterator[str]:
    """Finds an image side that patches do not fill."""
    if size % patch:
        near = max(patch, round(size / patch) * patch)
        yield f"{key} = {size} is not a multiple of model.patch_size = {patch}: use {near}"


def _multiples(every: int, last: int) -> range:
    return range(every, last + 1, every) if every > 0 else range(0)


def _values(c: ConfigDict, prefix: str, choices: dict[str, tuple], rules: tuple[Rule, ...]) -> Iterator[str]:
    for key, allowed in choices.items():
        yield from _check(c, prefix, key, allowed.__contains__, _one_of(allowed))
    for good, words, keys in rules:
        for key in keys.split():
            yield from _check(c, prefix, key, good, words)


def _one_of(allowed: tuple) -> str:
    return f"one of {', '.join(allowed)}" if len(allowed) > 1 else str(allowed[0])


def _check(c: ConfigDict, prefix: str, key: str, good: Callable[[Any], bool], allowed: str) -> Iterator[str]:
    value: Any = c
    for name in key.split("."):
        if name not in value and key.startswith("model."):
            return  # an option of other networks
        value = value[name]
    if not good(value):
        yield f"{prefix}{key} = {value!r} must be {allowed}"
