"""Continues self-supervised training from released weights on a folder of images; the variant names the model.

First the new heads learn on top of the frozen backbone, then everything, with a small learning rate that is smaller
the deeper a layer lies. The losses are those of the model's generation (ResNet-50 and ConvNeXt: without iBOT, and with
one learning rate for all layers). Student and teacher begin as the released model.
Paper: DINO (arXiv 2104.14294), DINOv2 (2304.07193), DINOv3 (2508.10104); not a published setting.
Hardware: one GPU with 40 GB for ViT-S and ViT-B, for larger ones with a smaller batch (estimated, not run); with
several, the batch is split.
Time and score: not run.
Command: python -m dino_jax.main --config configs/continue_from.py:dinov2_vitb14 --workdir DIR
  --config.init.weights=WEIGHTS --config.data.path=IMAGES

WEIGHTS is whatever `dino_jax.load` reads: an official .pth, a folder of Hugging Face or timm, another run's workdir.
To hold the patch features of a transformer to the released ones: --config.phases.all.gram.teacher=gram_teacher/0 with
start, peak and end of --config.phases.all.schedules.gram_weight at 2.
"""

from dino_jax import config

# By generation: targets, weights of iBOT and KoLeo, whether sizes of masks are drawn, gain of the prototypes, first
# temperature of the teacher. Sharp at first: Sinkhorn-Knopp turns the alike scores of new prototypes into uniform
# targets.
GENERATIONS = {
    "dino": ("centering", 0.0, 0.0, False, "frozen", 0.04),
    "dinov2": ("sinkhorn_knopp", 1.0, 0.1, True, "trained", 0.01),
    "dinov3": ("sinkhorn_knopp", 1.0, 0.1, False, "none", 0.01),
}
BATCH = 128
HEADS, ALL = 1000, 10_000  # steps


def get_config(variant: str = "dinov3_vits16"):
    """Returns the recipe for a model, such as "dinov2_vitb14_reg"."""
    c = config.default()
    c.model = config.model(variant)
    targets, ibot, koleo, drawn_sizes, gain, sharp = GENERATIONS[variant.split("_")[0]]
    patch, layer_decay = 32, 1.0
    if "heads" in c.model:
        patch, layer_decay = c.model.patch_size, 0.8
        c.model.drop_path = 0.1
        c.remat = "full" if patch == 8 else "matmuls"
    else:  # a convolutional network, without masks and attention
        ibot = 0.0
    # Fewer prototypes than for ImageNet: thousands of images cannot fill 65,536.
    c.dino_head = config.head(prototypes=8192, gain=gain)
    c.ibot_head = config.head(prototypes=8192, gain=gain)
    c.init.weights = "WEIGHTS"
    c.data.workers = 8
    # Early and often, as features that get worse are the danger here, and what was better must still be there.
    c.checkpoint.every = c.eval.knn.every = c.eval.dense.every = c.eval.quality.every = 500
    c.checkpoint.keep_every = 1000

    heads = config.phase(
        steps=HEADS,
        batch_size=BATCH,
        crops={"local_size": round(96 / patch) * patch},
        masks={"drawn_sizes": drawn_sizes},
        targets=targets,
        loss={"ibot": ibot, "koleo": koleo},
        optim={"lr_scaling": "none", "freeze_backbone": -1},
        schedules={
            "lr": config.schedule(start=0.0, peak=1e-3, end=1e-4, warmup=HEADS // 10),
            "weight_decay": config.constant(0.04),
            # A constant backbone needs no slow teacher.
            "momentum": config.constant(0.99),
            "teacher_temperature": config.schedule(start=sharp, peak=0.04, end=0.04, warmup=HEADS),
        },
    )
    everything = config.following(
        heads,
        steps=ALL,
        optim={"freeze_backbone": 0, "layer_decay": layer_decay},
        schedules={
            "lr": config.schedule(start=0.0, peak=1e-4, end=1e-6, warmup=ALL // 10),
            "momentum": config.schedule(start=0.998, peak=0.998, end=1.0),
            "teacher_temperature": config.constant(0.04),
        },
    )
    config.set_phases(c, heads=heads, everything=everything)
    return c
