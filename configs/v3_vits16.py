"""DINOv3 ViT-S/16 on ImageNet-1k for one GPU or a few: 100 epochs, then a short Gram phase.

Paper: DINOv3 (arXiv 2508.10104), the fast ImageNet-1k set-up of `v3_vitl16.py`, made smaller; stochastic depth, EMA
momentum and learning rate (1e-3 at this batch) are those of DINO's ViT-S/16 (arXiv 2104.14294). Not a published
setting. At the 2.8e-3 that the larger network's rule gives, a network of this width did not learn: docs/results.md.
Hardware: one GPU with 80 GB; with several, the batch is split.
Time and score: not run.
Command: python -m dino_jax.main --config configs/v3_vits16.py --workdir DIR
  --config.data.path=imagenet/train --config.data.test_path=imagenet/val
"""

from dino_jax import config


def get_config():
    """Returns the recipe."""
    larger = config.beside(__file__, "v3_vitl16.py")
    c = larger.get_config()
    c.model = config.model("dinov3_vits16", drop_path=0.1)
    c.remat = "full"
    c.data.workers = 16
    larger.set_phases(c, batch=512, epoch=2500, momentum=0.996, peak=3.5e-4)  # 1.28 million images an epoch
    return c
