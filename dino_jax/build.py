"""Makes the objects of a run from its configuration; models, losses, data and the step know nothing of ConfigDict."""

import dataclasses
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dino_jax import optim, schedules
from dino_jax.data.deep import decoder, sample_type
from dino_jax.data.labelled import open_labelled, with_classes
from dino_jax.data.packaged import PackagedSource
from dino_jax.data.pipeline import TrainBatches, train_batches
from dino_jax.data.sources import Source, open_path, open_source
from dino_jax.data.subset import Joined
from dino_jax.models import Backbone, PrototypeHead, VisionTransformer, network_class
from dino_jax.models.fused import disagreement
from dino_jax.objective import Objective
from dino_jax.phases import Phase, by_size
from dino_jax.recipe import naming
from dino_jax.state import Networks
from dino_jax.step import Step, make_train_step


def sources(config: ConfigDict) -> tuple[Source, Source | None]:
    """Opens the training images and the held-out ones, None if there are none; both number the classes alike.

    Of training images from two places, the classes of `data.homogeneous_path` count, if it has any.

    Raises:
      ValueError: a path is missing or without images, or the held-out ones have a class that is not trained on.
    """
    data = config.data
    if data.source == "packaged":
        number = data.windows_per_photograph
        seen, held_out = (
            PackagedSource(split=split, window_size=data.window_size, windows_per_photograph=count)
            for split, count in (("train", number), ("test", max(1, number // 4)))
        )
        return seen, held_out
    decode = decoder(config.model.in_channels, data.bits)
    with naming("data.path"):
        train: Source = open_source(data.source, data.path, decode=decode)
    if data.homogeneous_path:
        with naming("data.homogeneous_path"):
            train = Joined(train, open_path(data.homogeneous_path, decode=decode))
    if not data.test_path:
        return train, None
    with naming("data.test_path"):
        test = open_source(data.source, data.test_path, decode=decode)
    if train.class_names and test.class_names:
        second = isinstance(train, Joined) and train.labelled is train.second
        other = data.homogeneous_path if second else data.path
        test = with_classes(test, train.class_names, place=data.test_path, other=other)
    return train, test


def evaluated(config: ConfigDict, source: Source, held_out: Source | None) -> tuple[Source, Source | None]:
    """Opens the images that vote in k-NN, and those that are classified: from eval.knn.path, else those of `sources`.

    Raises:
      ValueError: a path is missing, or its images have no two classes.
    """
    path = config.eval.knn.path
    if not path:
        return source, held_out
    with naming("eval.knn.path"):
        found = open_labelled(path, decode=decoder(config.model.in_channels, config.data.bits))
    return found.train, found.test


def batches(config: ConfigDict, phase: Phase, source: Source) -> TrainBatches:
    """Opens a phase's training batches, this process's part of them."""
    crops, masks = phase.options.crops, phase.options.masks
    return train_batches(
        source,
        batch_size=phase.options.batch_size,
        seed=config.seed * 1000 + phase.index,
        global_size=crops.global_size,
        global_scale=tuple(crops.global_scale),
        local_size=crops.local_size,
        local_scale=tuple(crops.local_scale),
        local_number=crops.local_number,
        horizontal_flips=crops.horizontal_flips,
        gram_size=phase.options.gram.crop_size if phase.gram else 0,
        homogeneous=len(source.second) if isinstance(source, Joined) else 0,
        homogeneous_share=config.data.homogeneous_share,
        mixture=[(*row[:3], row[3] if phase.gram else 0) for row in crops.mixture],
        patch_size=config.model.get("patch_size", 1),
        mask_ratio=tuple(masks.ratio),
        mask_probability=masks.probability if phase.options.loss.ibot else 0.0,
        mask_group_size=masks.group_size,
        mask_drawn_sizes=masks.drawn_sizes,
        mask_circular_shift=masks.circular_shift,
        channels=config.model.in_channels,
        dtype=sample_type(config.model.in_channels, config.data.bits),
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def networks(config: ConfigDict, *, shards: int) -> Networks:
    """Builds backbone and heads; attention is plain unless `with_attention` changes that.

    Args:
      shards: data shards of the mesh.
    """
    dtype = jnp.dtype(config.precision)
    options = config.model.to_dict()
    module: Any = network_class(options)
    training = {"shards": shards, "remat": config.remat} if module is VisionTransformer else {}
    if "attention" in options:
        options["attention"] = "xla"
    backbone: Backbone = module(**options, **training, dtype=dtype)
    dino_head, ibot_head = (PrototypeHead(**h.to_dict(), dtype=dtype) for h in (config.dino_head, config.ibot_head))
    with_ibot = any(config.phases[name].loss.ibot for name in config.phase_order)
    return Networks(backbone, dino_head, ibot_head if with_ibot and not config.share_head else None)


def with_attention(networks: Networks, config: ConfigDict, device: jax.Device) -> Networks:
    """Gives a transformer the kernel of `model.attention`; says on stderr what "auto" comes to on this device.

    Raises:
      ValueError: "cudnn" is asked for, and does not compute here what plain products do.
    """
    asked = config.model.get("attention", "xla")
    if asked == "xla":
        return networks
    wrong = why_not_fused(networks.backbone, config, device)
    if asked == "auto":
        print(f"attention: {f'plain, as {wrong}' if wrong else 'the kernel of cuDNN'}", file=sys.stderr)
    elif wrong:
        raise ValueError(f"model.attention = {asked!r}: {wrong}: use 'xla'")
    backbone = networks.backbone.clone(attention="xla" if wrong else "cudnn")
    return dataclasses.replace(networks, backbone=backbone)


def why_not_fused(backbone: Backbone, config: ConfigDict, device: jax.Device) -> str:
    """Returns the reason not to use cuDNN's attention on a device, "" if there is none; tries it at all crop sizes."""
    capability = getattr(device, "compute_capability", "")  # "9.0" of an H100, "gfx942" of a GPU that is not NVIDIA's
    ampere = bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= 8
    if not ampere or config.precision != "bfloat16":
        needs = "an NVIDIA GPU (Ampere or later) and precision = 'bfloat16'"
        return f"cuDNN's kernel needs {needs}, not {device.device_kind} and {config.precision!r}"
    assert isinstance(backbone, VisionTransformer)
    head, counts = backbone.width // backbone.heads, token_counts(config, backbone)
    checks = (disagreement(tokens=tokens, head_dim=head, device=device) for tokens in counts)
    wrong = next(filter(None, checks), "")
    return wrong and f"cuDNN's kernel fails its check ({wrong})"


def token_counts(config: ConfigDict, backbone: VisionTransformer) -> list[int]:
    """Lists the numbers of tokens of all crops that a transformer is trained on."""
    phases = [sized for name in config.phase_order for _, sized in by_size(config.phases[name])]
    sides = {side for phase in phases for side in _sides(phase)}
    return sorted({backbone.token_count(side) for side in sides})


def _sides(options: ConfigDict) -> list[int]:
    """Lists the sides of a phase's crops."""
    gram = [options.gram.crop_size] if options.gram.teacher != "none" and options.gram.crop_size else []
    return [options.crops.global_size, options.crops.local_size, *gram]


def centered(config: ConfigDict) -> tuple[str, ...]:
    """Names the heads whose targets are centered in some phase; their centers pass from phase to phase."""
    phases = [config.phases[name] for name in config.phase_order]
    phases = [phase for phase in phases if phase.targets == "centering"]
    return ("dino",) * bool(phases) + ("ibot",) * any(phase.loss.ibot for phase in phases)


def optimizer(options: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Builds AdamW or SGD; its state passes from phase to phase.

    Raises:
      ValueError: for any other name.
    """
    match options.optim.name:
        case "adamw":
            return optim.adamw(options.optim.b1, options.optim.b2)
        case "sgd":
            return optim.sgd(options.optim.b1)
    raise ValueError(f"optim.name = {options.optim.name!r}: use adamw or sgd")


def train_step(networks: Networks, options: ConfigDict, *, seed: int) -> Step:
    """Builds the step of a phase."""
    gram = options.gram
    if options.remat and isinstance(networks.backbone, VisionTransformer):
        networks = dataclasses.replace(networks, backbone=networks.backbone.clone(remat=options.remat))
    objective = Objective(
        student_temperature=options.student_temperature,
        targets=options.targets,
        sinkhorn_iterations=options.sinkhorn_iterations,
        center_momentum=options.center_momentum,
        dino=options.loss.dino,
        ibot=options.loss.ibot,
        koleo=options.loss.koleo,
        koleo_topk=options.loss.koleo_topk,
        koleo_group_size=options.loss.koleo_group_size or None,
        gram=gram.teacher != "none",
        gram_antialias=gram.antialias,
        gram_image_level=gram.image_level,
        gram_remove_negatives=gram.remove_negatives,
        gram_tokens=gram.tokens,
        gram_stats=gram.stats,
    )
    return make_train_step(
        networks,
        optimizer(options),
        objective,
        clip={"module": optim.clip_by_module, "tensor": optim.clip_by_tensor}[options.optim.clip],
        clip_norm=options.optim.clip_norm,
        layer_decay=options.optim.layer_decay,
        patch_embed_multiplier=options.optim.patch_embed_multiplier,
        seed=seed,
    )


def phase_schedules(options: ConfigDict) -> dict[str, schedules.Schedule]:
    """Builds the phase's schedules by the names that the step takes; each counts from the phase's first step."""
    scale = schedules.learning_rate_scale(options.optim.lr_scaling, options.batch_size)
    built: dict[str, schedules.Schedule] = {}
    for name, s in options.schedules.items():
        # The references scale the peak and the end of the learning rate, not its start.
        factor = scale if name == "lr" else 1.0
        built[name] = schedules.WarmupCosine(
            start=s.start,
            peak=s.peak * factor,
            end=s.end * factor,
            warmup=s.warmup,
            cosine=s.cosine or None,
            total=options.steps,
        )
    frozen, rests = options.optim.freeze_last_layer, options.optim.last_layer_rests
    frozen_backbone = options.optim.freeze_backbone if options.optim.freeze_backbone >= 0 else options.steps
    built["backbone_lr"] = schedules.FrozenStart(built["lr"], frozen_backbone)
    built["last_layer_lr"] = schedules.FrozenStart(built["lr"], frozen)
    built["last_layer_rests"] = lambda step: float(rests and step < frozen)
    return built


def hyper(built: dict[str, schedules.Schedule], step: int) -> dict[str, np.float32]:
    """Evaluates all schedules at a step of the phase."""
    return {name: np.float32(schedule(step)) for name, schedule in built.items()}
