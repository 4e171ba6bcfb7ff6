"""DINO ResNet-50 on ImageNet-1k, 100 epochs, with SGD.

Paper: DINO (arXiv 2104.14294); the arguments that the public code recommends for convolutional networks. The released
model (67.5 % 20-NN, 75.3 % linear) was trained for longer, with LARS and a batch of 4080.
Hardware: 8 GPUs with 32 GB (64 images each). Batch statistics are those of the whole batch.
Time and score here: not run.
Command: python -m dino_jax.main --config configs/v1_resnet50.py --workdir DIR
  --config.data.path=imagenet/train --config.data.test_path=imagenet/val
"""

from dino_jax import config


def get_config():
    """Returns the recipe."""
    transformer = config.beside(__file__, "v1_vits16.py")
    c = transformer.get_config()
    c.model = config.model("dino_resnet50")
    c.remat = "none"
    batch = 512
    transformer.set_phase(
        c,
        batch=batch,
        epochs=100,
        crops={"global_scale": (0.14, 1.0), "local_scale": (0.05, 0.14)},
        optim={"name": "sgd"},
        schedules={
            "lr": {"peak": 0.03},
            "weight_decay": config.constant(1e-4),
        },
    )
    return c
