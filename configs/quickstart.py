"""A small DINOv3 run on the photographs inside scikit-image: pretraining, then a Gram phase. Nothing is downloaded.

Paper: DINOv3 (arXiv 2508.10104) at toy size; not a published setting.
Hardware: 2 CPU cores, under 4 GB.
Command: python -m dino_jax.main --config configs/quickstart.py --workdir runs/quickstart
"""

from dino_jax import config


def get_config():
    """Returns the recipe."""
    c = config.default()
    c.precision = "float32"
    c.model = config.model("dinov3_vits16", patch_size=8, width=128, depth=6, heads=4, layer_scale=0.1)
    c.dino_head = config.head(prototypes=1024, hidden=256, bottleneck=64)
    c.ibot_head = config.head(prototypes=1024, hidden=256, bottleneck=64)
    c.data.source = "packaged"
    c.data.window_size = 64
    c.data.windows_per_photograph = 256
    c.knn.size = 64
    c.checkpoint.every = 200
    c.log.health_every = 50

    pretrain = config.phase(
        steps=500,
        batch_size=32,
        crops={"global_size": 64, "local_size": 32, "local_number": 4},
        optim={"lr_scaling": "none", "layer_decay": 1.0, "patch_embed_multiplier": 1.0, "freeze_last_layer": 20},
        schedules={
            "lr": config.schedule(start=0.0, peak=1e-3, end=1e-3, warmup=50),
            "weight_decay": config.constant(0.04),
            "momentum": config.constant(0.99),
            "teacher_temperature": config.schedule(start=0.04, peak=0.07, end=0.07, warmup=100),
        },
        snapshot_steps=(300,),
    )
    gram = config.following(
        pretrain,
        steps=100,
        gram={"teacher": "gram_teacher/300", "crop_size": 128},
        optim={"freeze_last_layer": 0},
        schedules={
            "lr": config.schedule(start=1e-3, peak=1e-3, end=1e-5),
            "momentum": config.schedule(start=0.99, peak=0.99, end=0.999),
            "teacher_temperature": config.constant(0.07),
            "gram_weight": config.constant(2.0),
        },
    )
    config.set_phases(c, pretrain=pretrain, gram=gram)
    return c
