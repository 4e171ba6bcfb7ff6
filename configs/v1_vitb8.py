"""DINO ViT-B/8 on ImageNet-1k, 300 epochs: the released model's run.

Paper: DINO (arXiv 2104.14294), 77.4 % (20-NN) and 80.1 % (linear). The arguments are those of the released model, whose
batch was 1056 (6 images on each of 176 GPUs); here it is 1024, with the learning rate in proportion.
Hardware: 128 GPUs with 32 GB (8 images each), or fewer with more memory.
Time and score here: not run.
Command, on every host: DINO_JAX_DISTRIBUTED=1 python -m dino_jax.main --config configs/v1_vitb8.py --workdir DIR
  --config.data.path=imagenet/train --config.data.test_path=imagenet/val
"""

from dino_jax import config

BATCH = 1024


def get_config():
    """Returns the recipe."""
    smaller = config.beside(__file__, "v1_vits16.py")
    c = smaller.get_config()
    c.model = config.model("dino_vitb8", drop_path=0.1, drop_path_ramp=True)
    c.remat = "matmuls"
    warmup = 50 * (smaller.IMAGES // BATCH)
    smaller.set_phase(
        c,
        batch=BATCH,
        epochs=300,
        frozen_epochs=3,
        last_lr=2e-6,
        crops={"global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25), "local_number": 10},
        schedules={"teacher_temperature": config.schedule(start=0.03, peak=0.07, end=0.07, warmup=warmup)},
    )
    return c
