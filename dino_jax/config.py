"""Every knob of a run with its unit and source; recipes in configs/ state only what differs."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from dino_jax.models.variants import VARIANTS


def default() -> ConfigDict:
    """Returns the configuration that every recipe starts from, closed to new keys; add phases with `set_phases`."""
    c = ConfigDict()
    c.seed = 0  # weights, data order, crops, masks and stochastic depth
    # Type of the forward and backward passes; parameters and losses stay float32. With "float32", accelerators still
    # multiply in fewer bits, unless JAX_DEFAULT_MATMUL_PRECISION=highest is in the environment.
    c.precision = "bfloat16"
    c.model = model("dinov3_vits16")
    c.dino_head = head(prototypes=65_536)
    c.ibot_head = head(prototypes=65_536)  # unused where loss.ibot is 0 in all phases
    c.share_head = False  # the DINO head scores the patches as well, and there is no iBOT head

    c.init = ConfigDict()
    c.init.weights = ""  # file or folder of backbone weights to start from; "" draws them from the seed

    c.data = ConfigDict()
    c.data.source = "folder"  # packaged | folder | tar | arrayrecord
    c.data.path = ""  # folder or file; unused by "packaged"
    c.data.test_path = ""  # labelled held-out images for evaluation; "" uses the source's own, or none
    c.data.homogeneous_path = ""  # images for homogeneous batches (DINOv3: ImageNet-1k); "" for none
    c.data.homogeneous_share = 0.0  # share of the batches that are of those images alone
    c.data.window_size = 96  # pixels; of the windows cut from the packaged photographs
    c.data.windows_per_photograph = 512  # in training; a quarter of it held out
    c.data.workers = 0  # processes that decode and crop; 0 uses a thread of the training process
    c.data.max_bad_share = 0.05  # stop when more than this share of the images cannot be read
    c.data.bits = 0  # 16 keeps all bits of each sample; 0: 8 of RGB (model.in_channels = 3), 16 of other channels
    c.data.mean = (0.485, 0.456, 0.406)  # of each channel, of images in [0, 1]: ImageNet's
    c.data.std = (0.229, 0.224, 0.225)

    c.mesh = ConfigDict()
    # One of the two may be -1: it takes all devices that are left.
    c.mesh.data = -1  # devices that hold a full copy of what fsdp shards
    c.mesh.fsdp = 1  # devices over which parameters, moments and teachers are split

    c.remat = "none"  # what the backward pass recomputes: none | matmuls (all but products) | full (whole blocks)

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps
    c.checkpoint.keep_last = 3
    c.checkpoint.keep_every = 0  # steps, a multiple of `every`; checkpoints at its multiples stay for ever; 0: none

    c.log = ConfigDict()
    c.log.every = 10  # steps
    c.log.health_every = 100  # steps; entropies, ranks and cosines on the current batch
    c.log.pictures = True  # draw pictures when the run ends

    c.nonfinite_limit = 10  # stop after this many skipped updates in a row

    # How the EMA teacher is measured while it trains, each protocol with its period (0: only at the end).
    c.eval = ConfigDict()
    c.eval.size = 224  # pixels; side of the evaluated images
    c.eval.knn = ConfigDict()  # weighted k-NN accuracy on the images of data.test_path: the global quality
    c.eval.knn.path = ""  # or on the images in folders train and val here, of which those in train vote
    c.eval.knn.every = 5000  # steps
    c.eval.knn.k = 20
    c.eval.knn.images = 20_000  # training images that vote, spread evenly over the set
    c.eval.dense = ConfigDict()  # mIoU of a linear probe on patches, in closed form: the dense quality
    c.eval.dense.every = 5000  # steps
    c.eval.dense.path = ""  # folder or tar of {train,val}/{images,masks}; "" for none
    c.eval.dense.images = 200  # maximum of each split, spread evenly
    c.eval.quality = ConfigDict()  # effective rank, uniformity, patch consistency; needs no labels
    c.eval.quality.every = 5000  # steps
    c.eval.quality.images = 512

    c.phases = ConfigDict()
    c.phase_order = ()
    return c.lock()


def model(variant: str, **changes: Any) -> ConfigDict:
    """Returns the options of a published size with `changes`, and those that only act in training.

    Raises:
      ValueError: for an unknown size, or a change of something that is not an option of it.
    """
    training = {
        "drop_path": 0.0,  # stochastic depth: share of the samples that skip a residual branch
        "drop_path_ramp": False,  # the share rises from 0 in the first block to drop_path in the last
        "attention": "xla",  # xla | cudnn (fused; NVIDIA GPUs, bfloat16) | auto: cudnn where it passes a check
    }
    rope = {
        "rope_shift": 0.0,  # RoPE box augmentation: +- shift,
        "rope_jitter": 1.0,  # one factor per axis in [1 / jitter, jitter],
        "rope_rescale": 1.0,  # one factor for both in [1 / rescale, rescale]
    }
    if variant not in VARIANTS:
        raise ValueError(f"there is no model {variant!r}; there are {', '.join(VARIANTS)}")
    options = VARIANTS[variant]
    if "heads" not in options:  # a convolutional network
        return _changed(ConfigDict(options), changes)
    return _changed(ConfigDict(options | training | (rope if "rope_base" in options else {})), changes)


def head(*, prototypes: int, hidden: int = 2048, bottleneck: int = 256, gain: str = "none") -> ConfigDict:
    """Returns the options of a projection head (DINO, section 3.1).

    Args:
      prototypes: outputs, which the targets are distributions over.
      hidden: width of the two hidden layers.
      bottleneck: dimensions of the normalised vector that is compared with the prototypes.
      gain: "none" (DINOv3); of weight-normalised prototypes: "frozen" (DINO) or "trained" (DINOv2).
    """
    return ConfigDict({"prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck, "gain": gain}).lock()


def schedule(*, start: float, peak: float, end: float, warmup: int = 0, cosine: int = 0) -> ConfigDict:
    """Describes a value that rises linearly, follows a half cosine and stays.

    Args:
      start, peak, end: values at the first step, after the warm-up, and from the end of the cosine on.
      warmup: steps from `start` to `peak`.
      cosine: steps from `peak` to `end`; 0 takes all that remain of the phase.
    """
    return ConfigDict(
        {"start": float(start), "peak": float(peak), "end": float(end), "warmup": warmup, "cosine": cosine}
    ).lock()


def constant(value: float) -> ConfigDict:
    """Describes a value that never changes."""
    return schedule(start=value, peak=value, end=value)


def phase(**changes: Any) -> ConfigDict:
    """Returns one phase of a run: its own steps, crops, losses and schedules (all counted from its first step).

    The defaults are the DINOv3 crops, losses and optimizer of the fast ImageNet-1k set-up; `steps` must be given.
    Nested options are changed by dicts, `phase(steps=100, crops={"global_size": 96})`.
    """
    p = ConfigDict()
    p.steps = 0
    p.batch_size = 2048  # images per step, over all devices

    p.crops = ConfigDict()
    p.crops.global_size = 224  # pixels
    p.crops.global_scale = (0.32, 1.0)  # share of the image's area
    p.crops.local_size = 96
    p.crops.local_scale = (0.05, 0.32)
    p.crops.local_number = 8
    p.crops.horizontal_flips = True
    # Further sizes, of which each batch has one: (share of the batches, global_size, local_size, gram.crop_size), ...
    p.crops.mixture = ()

    p.masks = ConfigDict()
    p.masks.probability = 0.5  # share of the global crops that are masked
    p.masks.ratio = (0.1, 0.5)  # smallest and largest share of masked patches
    p.masks.drawn_sizes = False  # each from its part of the ratio, filled by blocks alone (DINOv2); else fixed
    p.masks.circular_shift = False  # roll each mask round the edges of its crop
    p.masks.group_size = 16  # samples over which the mask sizes are spread evenly; divides each device's batch

    p.remat = ""  # none | matmuls | full; "" takes `remat` of the run

    p.student_temperature = 0.1
    p.targets = "sinkhorn_knopp"  # sinkhorn_knopp | centering: how the teacher's scores become probabilities
    p.sinkhorn_iterations = 3
    p.center_momentum = 0.9  # of the mean score that centering subtracts

    p.loss = ConfigDict()
    p.loss.dino = 1.0
    p.loss.ibot = 1.0  # 0 has no masks either
    p.loss.koleo = 0.1
    p.loss.koleo_topk = 1  # nearest neighbours that are pushed away
    p.loss.koleo_group_size = 0  # samples among which neighbours are sought; 0 takes the whole batch

    p.gram = ConfigDict()
    p.gram.teacher = "none"  # none | ema (the teacher as the phase begins) | best_dense | gram_teacher/STEP | a folder
    # Pixels; side of the Gram teacher's undistorted view of each global crop; 0: the student's view.
    p.gram.crop_size = 0
    p.gram.refresh_every = 0  # steps; 0 never
    p.gram.first_refresh = 0  # steps; the earliest
    p.gram.max_refreshes = 0  # 0 has no limit
    p.gram.antialias = False  # when the Gram teacher's patches are brought to the student's grid
    p.gram.image_level = True  # similarities inside each image, or over the whole batch
    p.gram.remove_negatives = "none"  # none | both | teacher: similarities set to zero
    p.gram.tokens = "all"  # all | masked | unmasked patches
    p.gram.stats = False  # also report the loss over masked and over unmasked patches

    p.snapshot_steps = ()  # steps of this phase after which the teacher is saved under gram_teacher/
    p.snapshot_every = 0  # steps; also saved at multiples of this; 0 never

    p.optim = ConfigDict()
    p.optim.name = "adamw"  # adamw | sgd
    p.optim.b1 = 0.9  # also the momentum of SGD
    p.optim.b2 = 0.999
    p.optim.clip = "module"  # module (backbone, DINO head, iBOT head) | tensor: what is clipped, each by its own norm
    p.optim.clip_norm = 3.0
    p.optim.layer_decay = 0.9
    p.optim.patch_embed_multiplier = 0.2
    p.optim.lr_scaling = "sqrt_wrt_1024"  # none | linear_wrt_256 | sqrt_wrt_1024 (peak and end x 4 sqrt(batch / 1024))
    p.optim.freeze_last_layer = 0  # steps in which the prototypes do not move
    p.optim.last_layer_rests = False  # while frozen, they gather no moments either (DINO; not DINOv2 and DINOv3)
    p.optim.freeze_backbone = 0  # steps in which only the heads learn; -1: the whole phase

    p.schedules = ConfigDict()
    p.schedules.lr = schedule(start=0.0, peak=1e-3, end=1e-6)
    p.schedules.weight_decay = schedule(start=0.04, peak=0.04, end=0.4)
    p.schedules.momentum = schedule(start=0.992, peak=0.992, end=1.0)  # of the EMA teacher
    p.schedules.teacher_temperature = constant(0.07)
    p.schedules.local_weight = constant(1.0)  # of the DINO loss on local crops
    p.schedules.gram_weight = constant(0.0)  # of the mean squared difference of similarities
    return _changed(p, changes)


def following(previous: ConfigDict, **changes: Any) -> ConfigDict:
    """Returns a copy of phase `previous` with `changes`, without its snapshots."""
    return _changed(ConfigDict(previous.to_dict()), {"snapshot_steps": (), "snapshot_every": 0} | changes)


def set_phases(config: ConfigDict, **phases: ConfigDict) -> None:
    """Sets the phases of a run, in order.

    Raises:
      ValueError: for the name "all", by which the command line means every phase.
    """
    if "all" in phases:
        raise ValueError("a phase cannot be called 'all': --config.phases.all.KEY sets a value in every phase")
    config.phases = ConfigDict(phases).lock()
    config.phase_order = tuple(phases)


def beside(file: str, name: str) -> SimpleNamespace:
    """Returns what another recipe in the folder of recipe `file` defines, for one that states how it differs.

    Recipes are read by path and are not modules, so they cannot import one another.
    """
    return SimpleNamespace(**runpy.run_path(str(Path(file).with_name(name))))


def _changed(options: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    with options.unlocked():
        for name, value in changes.items():
            if name not in options:
                raise ValueError(f"there is no option {name!r} here; there are {', '.join(sorted(options))}")
            if isinstance(value, dict | ConfigDict) and isinstance(options[name], ConfigDict):
                _changed(options[name], dict(value))
            else:
                options[name] = value
    return options.lock()
