"""DINOv2 ViT-L/16 on ImageNet-1k: the fast set-up of the public code, 100 epochs.

Paper: DINOv2 (arXiv 2304.07193); the public code gives its scores as 81.6 % (20-NN) and 82.9 % (linear), on 32 A100.
Hardware: 32 GPUs with 80 GB (64 images each).
Time and score here: not run.
Command, on every host: DINO_JAX_DISTRIBUTED=1 python -m dino_jax.main --config configs/v2_vitl16_fast.py --workdir DIR
  --config.data.path=imagenet/train --config.data.test_path=imagenet/val
"""

import math

from dino_jax import config

BATCH = 2048
EPOCH = 1250  # steps: the references' unit


def get_config():
    """Returns the recipe."""
    c = config.default()
    c.model = config.model("dinov2_vitl14", patch_size=16, pos_grid=14, drop_path=0.3)
    c.dino_head = config.head(prototypes=65_536, gain="trained")
    c.share_head = True
    c.remat = "matmuls"
    c.data.workers = 8  # of each process, of which there is one per host or per GPU
    c.checkpoint.keep_every = 20 * EPOCH
    c.eval.knn.every = 10 * EPOCH

    # The published last learning rate, 1e-6, is not scaled with the batch, as `lr_scaling` would.
    end = 1e-6 / (4 * math.sqrt(BATCH / 1024))
    pretrain = config.phase(
        steps=100 * EPOCH,
        batch_size=BATCH,
        targets="centering",
        masks={"drawn_sizes": True},
        loss={"koleo_group_size": 64},  # the references look for neighbours among the images of one GPU
        optim={"freeze_last_layer": EPOCH},
        schedules={
            # Published as 4e-3 sqrt(batch / 1024).
            "lr": config.schedule(start=0.0, peak=1e-3, end=end, warmup=10 * EPOCH),
            "teacher_temperature": config.schedule(start=0.04, peak=0.07, end=0.07, warmup=30 * EPOCH),
        },
    )
    config.set_phases(c, pretrain=pretrain)
    return c
