"""DINOv3 ViT-S/16 on ImageNet-1k for one GPU or a few: 100 epochs, then a short Gram phase.

Paper: DINOv3 (arXiv 2508.10104), the fast ImageNet-1k set-up of `v3_vitl16.py`, made smaller; stochastic depth and EMA
momentum are those of DINO's ViT-S/16 (arXiv 2104.14294). Not a published setting.
Hardware: one GPU with 80 GB; with several, the batch is split.
Time and score: not run.
Command: python -m dino_jax.main --config configs/v3_vits16.py --workdir DIR
  --config.data.path=imagenet/train --config.data.test_path=imagenet/val
"""

import math

from dino_jax import config

BATCH = 512
EPOCH = 2500  # steps: 1.28 million images


def get_config():
    """Returns the recipe."""
    c = config.default()
    c.model = config.model("dinov3_vits16", drop_path=0.1)
    c.remat = "full"
    c.data.workers = 16
    c.checkpoint.keep_every = 20 * EPOCH
    c.eval.knn.every = 10 * EPOCH

    # The published last learning rate, 1e-6, is not scaled with the batch, as `lr_scaling` would.
    end = 1e-6 / (4 * math.sqrt(BATCH / 1024))
    pretrain = config.phase(
        steps=100 * EPOCH,
        batch_size=BATCH,
        loss={"koleo_group_size": 64},  # as with the larger batch of ViT-L
        optim={"freeze_last_layer": EPOCH},
        schedules={
            "lr": config.schedule(start=0.0, peak=1e-3, end=end, warmup=10 * EPOCH),
            "momentum": config.schedule(start=0.996, peak=0.996, end=1.0),
            "teacher_temperature": config.schedule(start=0.04, peak=0.07, end=0.07, warmup=30 * EPOCH),
        },
        snapshot_steps=(10 * EPOCH, 20 * EPOCH),  # Gram teachers to choose from
    )
    gram = config.following(
        pretrain,
        steps=4 * EPOCH,
        gram={
            "teacher": "ema",
            "crop_size": 448,
            "refresh_every": EPOCH,
            "first_refresh": EPOCH,
            "max_refreshes": 3,
        },
        optim={"freeze_last_layer": 0},
        schedules={
            "lr": config.schedule(start=0.0, peak=1e-4, end=end, warmup=EPOCH // 2),
            "weight_decay": config.constant(0.4),
            "momentum": config.constant(0.999),
            "teacher_temperature": config.constant(0.07),
            "local_weight": config.schedule(start=1.0, peak=0.5, end=0.5, warmup=EPOCH),
            "gram_weight": config.constant(2.0),
        },
    )
    config.set_phases(c, pretrain=pretrain, gram=gram)
    return c
