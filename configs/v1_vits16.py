"""DINO ViT-S/16 on ImageNet-1k, 100 epochs: the reference's plain run.

Paper: DINO (arXiv 2104.14294); the defaults of its public code on 8 GPUs, which gives their time as 1.75 days and their
scores as 69.3 % (20-NN) and 73.8 % (linear).
Hardware: 8 GPUs with 16 GB (64 images each), or fewer with more memory.
Time and score here: not run.
Command: python -m dino_jax.main --config configs/v1_vits16.py --workdir DIR
  --config.data.path=imagenet/train --config.data.test_path=imagenet/val
The longer published runs: --config.phases.pretrain.steps=750600 (300 epochs) with
  --config.phases.pretrain.schedules.teacher_temperature.peak=0.07
  --config.phases.pretrain.schedules.teacher_temperature.end=0.07
  --config.phases.pretrain.schedules.teacher_temperature.warmup=75060 --config.dino_head.gain=trained (the last is safe
  for ViT-S only).
"""

from dino_jax import config

IMAGES = 1_281_167


def get_config():
    """Returns the recipe."""
    c = config.default()
    c.model = config.model("dino_vits16", drop_path=0.1, drop_path_ramp=True)
    c.dino_head = config.head(prototypes=65_536, gain="frozen")
    c.remat = "matmuls"
    c.data.workers = 16
    set_phase(c, batch=512, epochs=100)
    return c


def set_phase(c, *, batch, epochs, frozen_epochs=1, last_lr=1e-6, **changes):
    """Sets the one phase of DINO: cross-entropy of the crops on centered targets, no masks.

    Args:
      batch: images per step.
      epochs: passes over ImageNet-1k.
      frozen_epochs: those at the start in which the last layer rests.
      last_lr: learning rate at the end.
      changes: options of the phase that differ besides.
    """
    epoch = IMAGES // batch
    c.checkpoint.every = epoch
    c.checkpoint.keep_every = 20 * epoch
    c.eval.knn.every = 10 * epoch
    phase = config.phase(
        steps=epochs * epoch,
        batch_size=batch,
        crops={"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4)},
        targets="centering",
        loss={"ibot": 0.0, "koleo": 0.0},
        optim={
            "clip": "tensor",
            "freeze_last_layer": frozen_epochs * epoch,
            "last_layer_rests": True,
            "layer_decay": 1.0,
            "patch_embed_multiplier": 1.0,
            "lr_scaling": "linear_wrt_256",
        },
        schedules={
            # The last learning rate is not scaled with the batch, as `lr_scaling` would.
            "lr": config.schedule(start=0.0, peak=5e-4, end=last_lr * 256 / batch, warmup=10 * epoch),
            "momentum": config.schedule(start=0.996, peak=0.996, end=1.0),
            "teacher_temperature": config.constant(0.04),
        },
    )
    config.set_phases(c, pretrain=config.following(phase, **changes))
