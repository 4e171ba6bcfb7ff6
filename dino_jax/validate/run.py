"""What must hold in a whole configuration, and between its phases."""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from dino_jax.models import ConvNext, VisionTransformer, network_class
from dino_jax.models.head import GAINS
from dino_jax.models.vit import ATTENTIONS, REMAT_POLICIES
from dino_jax.phases import by_size, in_order
from dino_jax.validate.phase import phase_problems
from dino_jax.validate.rules import (
    ABOVE_0,
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    SHARE,
    Rule,
    check,
    largest,
    not_multiple,
    single_patch,
    values,
)

CHOICES: dict[str, tuple] = {
    "precision": ("float32", "bfloat16"),
    "remat": tuple(REMAT_POLICIES),
    "data.source": ("packaged", "folder", "tar", "arrayrecord"),
    "model.ffn": ("mlp", "swiglu"),
    "dino_head.gain": GAINS,
    "ibot_head.gain": GAINS,
    "model.norm": ("layernorm", "rmsnorm"),
    "model.attention": ("auto", *ATTENTIONS),
    "data.bits": (0, 16),
}
RULES: tuple[Rule, ...] = (
    (
        *ABOVE_0,
        "model.in_channels model.patch_size model.width model.depth model.heads model.ffn_ratio model.ffn_align "
        "model.norm_epsilon model.rope_base dino_head.prototypes dino_head.hidden dino_head.bottleneck "
        "ibot_head.prototypes ibot_head.hidden ibot_head.bottleneck data.window_size data.windows_per_photograph "
        "checkpoint.every checkpoint.keep_last log.every log.health_every nonfinite_limit "
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
    (*BELOW_1, "model.drop_path data.homogeneous_share"),
)


def validate(config: ConfigDict) -> None:
    """Checks the values of a recipe and how they fit together.

    Raises:
      ValueError: naming the key, its value, what is allowed and the fix; the first problem found.
    """
    for problem in _problems(config):
        raise ValueError(problem)


def _problems(c: ConfigDict) -> Iterator[str]:
    yield from values(c, "", CHOICES, RULES)
    for key in ("path", "test_path", "homogeneous_path"):
        if c.data.source == "packaged" and c.data[key]:
            yield (
                f"data.{key} = {c.data[key]!r} has no effect with data.source = 'packaged', the photographs of an "
                "installed package: set data.source to folder, tar or arrayrecord"
            )
    if c.data.test_path and c.eval.knn.path:
        yield (
            f"data.test_path = {c.data.test_path!r} has no effect with eval.knn.path = {c.eval.knn.path!r}, which has "
            "images that vote and images that are classified: set one of them to ''"
        )
    if c.data.homogeneous_path and not c.data.homogeneous_share:
        yield (
            f"data.homogeneous_path = {c.data.homogeneous_path!r} has no effect with data.homogeneous_share = 0: set "
            "the share of the batches that are of these images alone, such as 0.1"
        )
    yield from _channel_problems(c)
    yield from check(c, "", "data.std", lambda v: min(v, default=0) > 0, "above 0 in each channel")
    yield from _model_problems(c)
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
    yield from _problems_of_phases(c)
    yield from _problems_between(c, [c.phases[name] for name in c.phase_order])


def _channel_problems(c: ConfigDict) -> Iterator[str]:
    """Finds what only RGB images, or those of 8 bits, can do."""
    channels, bits = c.model.in_channels, c.data.bits
    if c.data.source == "packaged" and (channels != 3 or bits == 16):
        yield (
            "data.source = 'packaged' has RGB photographs of 8 bits: with model.in_channels other than 3 or data.bits "
            "= 16, set it to folder, tar or arrayrecord"
        )
    if (channels != 3 or bits == 16) and c.eval.dense.path:
        yield ("eval.dense.path has RGB images of 8 bits: set it to '' with data.bits = 16, or with other channels")
    for key in ("data.mean", "data.std"):
        yield from check(c, "", key, lambda v: all(map(math.isfinite, v)), "finite numbers")


def _model_problems(c: ConfigDict) -> Iterator[str]:
    if network_class(c.model) is VisionTransformer:
        yield from not_multiple("eval.size", c.eval.size, c.model.patch_size)
        yield from single_patch("eval.size", c.eval.size, c.model.patch_size)
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


def _problems_of_phases(c: ConfigDict) -> Iterator[str]:
    known_snapshots = {"gram_teacher/0"} if c.init.weights else set()
    for phase in in_order(c):
        name, p = phase.name, phase.options
        yield from phase_problems(name, p, c.model.get("patch_size", 1), known_snapshots)
        if p.gram.teacher == "best_dense" and not (known_snapshots and c.eval.dense.path):
            yield (
                f"phases.{name}.gram.teacher = 'best_dense' chooses among the snapshots of earlier phases by their "
                "dense score: set snapshot_every of such a phase, and eval.dense.path to labelled images"
            )
        known_snapshots |= {f"gram_teacher/{step}" for step in phase.snapshots()}


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
        if p.gram.teacher != "none" and not largest(p.schedules.gram_weight):
            yield (
                f"phases.{name}.gram.teacher = {p.gram.teacher!r} has no effect with schedules.gram_weight = 0: "
                "change one of them"
            )
    for loss in ("dino",) if c.share_head else ("dino", "ibot"):
        yield from _late_problems(c, phases, loss)
    names = [p.optim.name for p in phases]
    if len(set(names)) > 1:
        yield f"optim.name differs between phases ({', '.join(names)}): moments pass from one to the next, use one"


def _late_problems(c: ConfigDict, phases: list[ConfigDict], loss: str) -> Iterator[str]:
    """Reports a loss that begins, or begins again, after phases without it and has no warm-up.

    AdamW counts updates for all parameters together: the moments of a head that has rested are too small for its count,
    and its steps up to six times too long, for about as many updates as the second moment lasts.
    """
    losses = [bool(p.loss.dino or (c.share_head and p.loss.ibot) if loss == "dino" else p.loss.ibot) for p in phases]
    rested = 0
    for name, p, used in zip(c.phase_order, phases, losses, strict=True):
        lasts = min(rested, round(1 / max(1 - p.optim.b2, 1e-6)), p.steps)
        if used and p.optim.name == "adamw" and p.schedules.lr.warmup < lasts:
            yield (
                f"phases.{name}.loss.{loss} begins after a phase without it, whose updates AdamW counts for its head "
                f"too: set phases.{name}.schedules.lr.warmup to {lasts} or more, or have the loss in all phases"
            )
        rested = 0 if used else rested + p.steps


def _convolutional_problems(c: ConfigDict, phases: list[ConfigDict]) -> Iterator[str]:
    """Finds what only a transformer can do."""
    if any(p.loss.ibot for p in phases):
        yield "loss.ibot needs a transformer, whose patches can be masked: set it to 0 in all phases"
    if any(p.gram.teacher != "none" for p in phases):
        yield "gram.teacher needs a transformer: set it to 'none' in all phases"
    named = {"remat": c.remat} | {f"phases.{name}.remat": c.phases[name].remat for name in c.phase_order}
    for key, remat in named.items():
        if remat not in ("", "none"):
            yield f"{key} = {remat!r} needs a transformer: set it to 'none'"
    patch = network_class(c.model)(**c.model.to_dict()).patch_size
    rounds_down = network_class(c.model) is ConvNext
    yield from not_multiple("eval.size", c.eval.size, patch, "the network's stride, ")
    yield from single_patch("eval.size", c.eval.size, patch)
    for name, p in zip(c.phase_order, phases, strict=True):
        smallest = {key: min(sized.crops[key] for _, sized in by_size(p)) for key in ("global_size", "local_size")}
        yield from single_patch(f"phases.{name}.crops.global_size", smallest["global_size"], patch, whole=rounds_down)
        if rounds_down and smallest["local_size"] < patch:
            yield (
                f"phases.{name}.crops.local_size = {smallest['local_size']} is less than the {patch} px of a patch: "
                "enlarge it"
            )
