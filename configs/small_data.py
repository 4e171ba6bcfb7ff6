"""Training from scratch on thousands of images with one device: `v3` (the default; no Gram phase), `v2`, `v1`.

What keeps it from collapsing, or from learning nothing, on little data: a small network with LayerScale at 1 (or none),
few prototypes, sharp targets while new prototypes still score all images alike, and a teacher that is slow from the
start.
Paper: DINOv3 (arXiv 2508.10104), DINOv2 (2304.07193), DINO (2104.14294); not published settings. Network, crops and
teacher temperatures are those of `v3_imagenette.py:gpu` (7,000 images); the other values are untested.
Hardware: one GPU with 8 GB; with 24 GB, --config.remat=matmuls is faster.
Time and score: not run.
Command: python -m dino_jax.main --config configs/small_data.py:v2 --workdir DIR --config.data.path=IMAGES
  --config.data.test_path=LABELLED
"""

from dino_jax import config

BATCH = 256
STEPS = 20_000  # as many images as 500 passes over 10,000
# A ViT-S on 96 pixels sees as many patches as on 192 with patches of 16.
SMALL = {"patch_size": 8, "drop_path": 0.1}
CROPS = {"global_size": 96, "local_size": 48}
# Sinkhorn-Knopp at the published 0.04 to 0.07 gives new prototypes uniform targets, from which nothing is learnt.
SHARP = config.schedule(start=0.004, peak=0.03, end=0.03, warmup=STEPS // 2)


def get_config(variant: str = "v3"):
    """Returns the recipe of a generation."""
    generations = {"v1": dino, "v2": dinov2, "v3": dinov3}
    if variant not in generations:
        raise ValueError(f"configs/small_data.py has no variant {variant!r}: use {', '.join(generations)}")
    c = config.default()
    c.remat = "full"
    c.data.workers = 12
    c.eval.size = 96
    c.eval.knn.every = 1000
    generations[variant](c)
    return c


def pretraining(*, crops=None, optim=None, temperature, **changes):
    """Returns the phase that all variants share, with changes."""
    return config.phase(
        steps=STEPS,
        batch_size=BATCH,
        crops=CROPS | (crops or {}),
        optim={"lr_scaling": "none", "patch_embed_multiplier": 1.0, "layer_decay": 1.0, "freeze_last_layer": 100}
        | (optim or {}),
        schedules={
            "lr": config.schedule(start=0.0, peak=5e-4, end=1e-5, warmup=STEPS // 10),
            "weight_decay": config.schedule(start=0.04, peak=0.04, end=0.2),
            "momentum": config.schedule(start=0.996, peak=0.996, end=1.0),
            "teacher_temperature": temperature,
        },
        **changes,
    )


def dinov3(c):
    """Sets Sinkhorn-Knopp, iBOT and KoLeo."""
    c.model = config.model("dinov3_vits16", layer_scale=1.0, **SMALL)
    c.dino_head = config.head(prototypes=4096)
    c.ibot_head = config.head(prototypes=4096)
    config.set_phases(c, pretrain=pretraining(temperature=SHARP))


def dinov2(c):
    """Sets Sinkhorn-Knopp, iBOT and KoLeo on learned positions, with weight-normalised prototypes."""
    c.model = config.model("dinov2_vits14", layer_scale=1.0, pos_grid=12, **SMALL)
    c.dino_head = config.head(prototypes=4096, gain="trained")
    c.ibot_head = config.head(prototypes=4096, gain="trained")
    config.set_phases(c, pretrain=pretraining(masks={"drawn_sizes": True}, temperature=SHARP))


def dino(c):
    """Sets the first DINO loss alone, on centered targets."""
    c.model = config.model("dino_vits8", pos_grid=12, drop_path_ramp=True, **SMALL)
    c.dino_head = config.head(prototypes=4096, gain="frozen")
    phase = pretraining(
        crops={"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4)},
        targets="centering",
        loss={"ibot": 0.0, "koleo": 0.0},
        optim={"clip": "tensor", "last_layer_rests": True},
        temperature=config.constant(0.04),
    )
    config.set_phases(c, pretrain=phase)
