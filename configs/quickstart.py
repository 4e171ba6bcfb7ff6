"""Small runs on the photographs inside scikit-image, of each generation: `v3` (the default), `v2`, `v1`.

Paper: DINOv3 (arXiv 2508.10104), pretraining and a Gram phase; DINOv2 (2304.07193) and DINO (2104.14294). All at toy
size; not published settings. Nothing is downloaded.
Hardware: 2 CPU cores, under 4 GB, under 5 minutes. Scores are in docs/results.md.
Command: python -m dino_jax.main --config configs/quickstart.py --workdir runs/quickstart
  or, of another generation: python -m dino_jax.main --config configs/quickstart.py:v1 --workdir runs/quickstart_v1
"""

from dino_jax import config

SMALL = {"patch_size": 8, "width": 128, "depth": 4, "heads": 4}
CROPS = {"global_size": 48, "local_size": 24, "local_number": 4}
OPTIM = {"lr_scaling": "none", "layer_decay": 1.0, "patch_embed_multiplier": 1.0}
POSITIONS = {"pos_grid": CROPS["global_size"] // SMALL["patch_size"]}


def get_config(variant: str = "v3"):
    """Returns the recipe of a generation."""
    generations = {"v1": dino, "v2": dinov2, "v3": dinov3}
    if variant not in generations:
        raise ValueError(f"configs/quickstart.py has no variant {variant!r}: use {', '.join(generations)}")
    c = config.default()
    c.precision = "float32"
    c.remat = "matmuls"
    c.data.source = "packaged"
    c.data.window_size = 64
    c.data.windows_per_photograph = 256
    c.eval.size = 64
    c.eval.knn.images = 2048
    c.checkpoint.every = 100
    c.log.health_every = 50
    generations[variant](c)
    return c


def set_heads(c, gain):
    """Sets heads small enough for a batch of 32."""
    c.dino_head = config.head(prototypes=256, hidden=256, bottleneck=64, gain=gain)
    c.ibot_head = config.head(prototypes=256, hidden=256, bottleneck=64, gain=gain)


def dinov3(c):
    """Sets pretraining with Sinkhorn-Knopp, iBOT and KoLeo, then a Gram phase."""
    c.model = config.model("dinov3_vits16", **SMALL)
    set_heads(c, "none")
    pretrain = config.phase(
        steps=180,
        batch_size=32,
        crops=CROPS,
        masks={"group_size": 4},  # small enough for eight devices
        optim=OPTIM,
        schedules={
            "lr": config.schedule(start=0.0, peak=2e-3, end=5e-4, warmup=20),
            "weight_decay": config.constant(0.04),
            "momentum": config.schedule(start=0.96, peak=0.96, end=0.99),
            # New prototypes score all images alike (0.02 apart): only sharp targets tell them apart in a short run.
            "teacher_temperature": config.schedule(start=0.004, peak=0.03, end=0.03, warmup=100),
        },
        snapshot_steps=(140,),
    )
    gram = config.following(
        pretrain,
        steps=40,
        gram={"teacher": "gram_teacher/140", "crop_size": 96},
        schedules={
            "lr": config.schedule(start=5e-4, peak=5e-4, end=1e-5),
            "momentum": config.constant(0.99),
            "teacher_temperature": config.constant(0.03),
            "gram_weight": config.constant(2.0),
        },
    )
    config.set_phases(c, pretrain=pretrain, gram=gram)


def dinov2(c):
    """Sets Sinkhorn-Knopp, iBOT and KoLeo on learned positions, with weight-normalised heads."""
    c.model = config.model("dinov2_vits14", **SMALL, **POSITIONS)
    set_heads(c, "trained")
    pretrain = config.phase(
        steps=220,
        batch_size=32,
        crops=CROPS,
        masks={"group_size": 4, "drawn_sizes": True},  # small enough for eight devices
        optim=OPTIM,
        schedules={
            "lr": config.schedule(start=0.0, peak=2e-3, end=1e-5, warmup=20),
            "weight_decay": config.constant(0.04),
            "momentum": config.schedule(start=0.96, peak=0.96, end=0.99),
            "teacher_temperature": config.schedule(start=0.004, peak=0.03, end=0.03, warmup=100),  # as for `v3`
        },
    )
    config.set_phases(c, pretrain=pretrain)


def dino(c):
    """Sets the first DINO loss alone, on centered targets."""
    c.model = config.model("dino_vits16", **SMALL, **POSITIONS)
    set_heads(c, "frozen")
    pretrain = config.phase(
        steps=400,
        batch_size=32,
        crops=CROPS | {"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4), "local_number": 6},
        targets="centering",
        loss={"ibot": 0.0, "koleo": 0.0},
        optim=OPTIM | {"clip": "tensor", "freeze_last_layer": 400, "last_layer_rests": True},
        schedules={
            # Without LayerScale the network tells images apart from the start: a tenth of the others' learning rate
            # and prototypes that stay improve on that.
            "lr": config.schedule(start=0.0, peak=2e-4, end=1e-5, warmup=20),
            "weight_decay": config.constant(0.0),
            "momentum": config.schedule(start=0.99, peak=0.99, end=0.999),
            "teacher_temperature": config.constant(0.04),
        },
    )
    config.set_phases(c, pretrain=pretrain)
