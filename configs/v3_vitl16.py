"""DINOv3 ViT-L/16 on ImageNet-1k: the fast set-up of the references, then a short Gram phase.

Paper: DINOv3 (arXiv 2508.10104); phase 1 has the hyper-parameters of the references' fast set-up, for the network of
  the released ViT-L/16; phase 2 is ours.
Hardware: 32 GPUs with 80 GB (64 images each).
Time and score: not run.
Command, on every host: DINO_JAX_DISTRIBUTED=1 python -m dino_jax.main --config configs/v3_vitl16.py --workdir DIR
  --config.data.path=imagenet/train --config.data.test_path=imagenet/val
"""

import math

from dino_jax import config


def get_config():
    """Returns the recipe."""
    c = config.default()
    c.model = config.model("dinov3_vitl16", drop_path=0.3)
    c.remat = "matmuls"
    c.data.workers = 8  # of each process, of which there is one per host or per GPU
    set_phases(c, batch=2048, epoch=1250, momentum=0.992)
    return c


def set_phases(c, *, batch, epoch, momentum, peak=1e-3):
    """Sets 100 epochs of pretraining and 4 with a Gram teacher.

    Args:
      batch: images per step.
      epoch: steps; 1250 with batch 2048 is the references' unit.
      momentum: of the teacher at first.
      peak: learning rate for a batch of 64, from which it grows with the square root; 1e-3 is the references'.
    """
    c.checkpoint.keep_every = 20 * epoch
    c.eval.knn.every = 10 * epoch
    # The published last learning rate, 1e-6, is not scaled with the batch, as `lr_scaling` would.
    end = 1e-6 / (4 * math.sqrt(batch / 1024))
    pretrain = config.phase(
        steps=100 * epoch,
        batch_size=batch,
        loss={"koleo_group_size": 64},  # the references look for neighbours among the images of one GPU
        optim={"freeze_last_layer": epoch},
        schedules={
            "lr": config.schedule(start=0.0, peak=peak, end=end, warmup=10 * epoch),
            "momentum": config.schedule(start=momentum, peak=momentum, end=1.0),
            "teacher_temperature": config.schedule(start=0.04, peak=0.07, end=0.07, warmup=30 * epoch),
        },
        # Gram teachers to choose from, at the same shares of the run as the paper's good ones (section 4.1).
        snapshot_steps=(10 * epoch, 20 * epoch),
    )
    # The 7B's second phase with its times divided by eight, as is the first. Its learning rate never decayed; this one
    # did, and is raised again to a tenth of its peak.
    gram = config.following(
        pretrain,
        steps=4 * epoch,
        gram={
            "teacher": "ema",
            "crop_size": 448,
            "refresh_every": epoch,
            "first_refresh": epoch,
            "max_refreshes": 3,
        },
        optim={"freeze_last_layer": 0},
        schedules={
            "lr": config.schedule(start=0.0, peak=peak / 10, end=end, warmup=epoch // 2),
            "weight_decay": config.constant(0.4),
            "momentum": config.constant(0.999),
            "teacher_temperature": config.constant(0.07),
            "local_weight": config.schedule(start=1.0, peak=0.5, end=0.5, warmup=epoch),
            "gram_weight": config.constant(2.0),
        },
    )
    config.set_phases(c, pretrain=pretrain, gram=gram)
