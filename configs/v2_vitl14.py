"""DINOv2 ViT-L/14 from scratch: 500 epochs of 1250 steps, then 10,000 steps at 518 pixels.

Paper: DINOv2 (arXiv 2304.07193), the public ViT-L/14 configuration (written for ImageNet-22k; the released model is
distilled from ViT-g), and the resolution phase of its appendix B.2.
Hardware: 96 GPUs with 80 GB (32 images each).
Time and score: not run.
Command, on every host: DINO_JAX_DISTRIBUTED=1 python -m dino_jax.main --config configs/v2_vitl14.py --workdir DIR
  --config.data.path=IMAGES

The feed-forward layers are SwiGLU, as in that configuration; the released ViT-L/14 has MLPs, so its weights do not fit.

Differs from the published runs: positions are learned on the 37 x 37 grid of the last phase from the start, resized to
16 x 16 in the first.
"""

import math

from dino_jax import config

BATCH = 3072
EPOCH = 1250  # steps: the references' unit


def get_config():
    """Returns the recipe."""
    c = config.default()
    c.model = config.model("dinov2_vitl14", ffn="swiglu", drop_path=0.4)
    c.dino_head = config.head(prototypes=131_072, bottleneck=384, gain="trained")
    c.ibot_head = config.head(prototypes=131_072, gain="trained")
    c.remat = "matmuls"
    c.data.workers = 8  # of each process, of which there is one per host or per GPU
    c.checkpoint.every = EPOCH
    c.checkpoint.keep_every = 50 * EPOCH
    set_phases(c, per_gpu=32)
    return c


def set_phases(c, *, per_gpu):
    """Sets pretraining and the resolution phase.

    Args:
      per_gpu: images of one GPU in the published run, among which KoLeo's neighbours are sought.
    """
    # The published last learning rate, 1e-6, is not scaled with the batch, as `lr_scaling` would.
    end = 1e-6 / (4 * math.sqrt(BATCH / 1024))
    pretrain = config.phase(
        steps=500 * EPOCH,
        batch_size=BATCH,
        crops={"local_size": 98},
        masks={"group_size": per_gpu, "drawn_sizes": True},
        loss={"koleo_group_size": per_gpu},
        optim={"layer_decay": 1.0, "freeze_last_layer": EPOCH},
        schedules={
            # Published as 2e-4 sqrt(batch / 1024).
            "lr": config.schedule(start=0.0, peak=5e-5, end=end, warmup=80 * EPOCH),
            "weight_decay": config.schedule(start=0.04, peak=0.04, end=0.2),
            "momentum": config.schedule(start=0.994, peak=0.994, end=1.0),
            "teacher_temperature": config.schedule(start=0.04, peak=0.07, end=0.07, warmup=30 * EPOCH),
        },
    )
    # The schedules of the first phase, compressed, but for the teacher's temperature, which stays at its end, and the
    # last layer, which is not frozen again; with a lower learning rate: how much lower is not published.
    steps = 10_000
    high_resolution = config.following(
        pretrain,
        steps=steps,
        crops={"global_size": 518},
        optim={"freeze_last_layer": 0},
        schedules={
            "lr": config.schedule(start=0.0, peak=5e-6, end=end, warmup=steps * 80 // 500),
            "teacher_temperature": config.constant(0.07),
        },
    )
    config.set_phases(c, pretrain=pretrain, high_resolution=high_resolution)
