"""DINOv2 ViT-g/14: 500 epochs of 1250 steps, then 10,000 steps at 518 pixels.

Paper: DINOv2 (arXiv 2304.07193), the public ViT-g/14 configuration and the resolution phase of its appendix B.2; the
published model saw 142 million curated images (83.5 % 20-NN, 86.5 % linear on ImageNet-1k).
Hardware: 256 GPUs with 80 GB (12 images each); the published run took 22,000 A100-hours.
Time and score here: not run.
Command, on every host: DINO_JAX_DISTRIBUTED=1 python -m dino_jax.main --config configs/v2_vitg14.py --workdir DIR
  --config.data.path=IMAGES

Differs from the published run in the same way as `v2_vitl14.py`.
"""

from dino_jax import config


def get_config():
    """Returns the recipe."""
    smaller = config.beside(__file__, "v2_vitl14.py")
    c = smaller.get_config()
    c.model = config.model("dinov2_vitg14", drop_path=0.4)
    c.remat = "full"
    c.mesh.data = 1
    c.mesh.fsdp = -1
    smaller.set_phases(c, per_gpu=12)
    return c
