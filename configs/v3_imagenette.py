"""DINOv3 on Imagenette at 96 pixels (7,000 training, 1,800 test images), with a Gram phase; variants `gpu` and `cpu`.

Paper: DINOv3 (arXiv 2508.10104) at small size; not a published setting.
Data: tars of <class>/<id>.jpg at data.path and data.test_path.
Hardware: `gpu` (ViT-S/8, 200 epochs): one accelerator; score and time: not run.
  `cpu` (a ViT of 2 M parameters, patch 12): 2 CPU cores; what it scored is in docs/results.md.
  Raw pixels score 37.1 % with the same 20-NN vote (35.7 % with an unweighted one).
Command: python -m dino_jax.main --config configs/v3_imagenette.py:cpu --workdir runs/imagenette \
  --config.data.path=../shared/data/objects-train.tar.gz --config.data.test_path=../shared/data/objects-test.tar.gz
"""

from dino_jax import config

IMAGES = 7000


def get_config(variant: str = "gpu"):
    """Returns the recipe of a variant."""
    if variant not in ("gpu", "cpu"):
        raise ValueError(f"configs/v3_imagenette.py has no variant {variant!r}: use gpu or cpu")
    gpu = variant == "gpu"
    c = config.default()
    c.data.source = "tar"
    c.data.path = "../shared/data/objects-train.tar.gz"
    c.data.test_path = "../shared/data/objects-test.tar.gz"
    c.eval.size = 96
    if gpu:
        c.model = config.model("dinov3_vits16", patch_size=8, layer_scale=1.0, drop_path=0.1)
        c.dino_head = config.head(prototypes=8192)
        c.ibot_head = config.head(prototypes=8192)
        c.data.workers = 12
    else:
        c.precision = "float32"
        c.remat = "matmuls"
        c.model = config.model("dinov3_vits16", patch_size=12, width=192, depth=4, heads=3, layer_scale=1.0)
        # Few prototypes for few samples: Sinkhorn-Knopp spreads the 128 global crops of a batch over all of them.
        c.dino_head = config.head(prototypes=256, hidden=512, bottleneck=128)
        c.ibot_head = config.head(prototypes=256, hidden=512, bottleneck=128)

    batch_size, epochs, share = (512, 200, 0.2) if gpu else (64, 12, 0.1)
    steps = epochs * IMAGES // batch_size
    pretrain_steps = round((1 - share) * steps)
    snapshot = pretrain_steps // 2
    c.checkpoint.every = 250
    c.eval.knn.every = 250 if gpu else 500
    pretrain = config.phase(
        steps=pretrain_steps,
        batch_size=batch_size,
        crops={"global_size": 96, "local_size": 48, "local_number": 8 if gpu else 4},
        optim={"patch_embed_multiplier": 1.0, "layer_decay": 1.0, "freeze_last_layer": 50},
        schedules={
            "lr": config.schedule(start=0.0, peak=1e-3 if gpu else 2e-3, end=5e-4, warmup=pretrain_steps // 10),
            "weight_decay": config.schedule(start=0.04, peak=0.04, end=0.1),
            "momentum": config.schedule(start=0.98, peak=0.98, end=0.998),
            # New prototypes score all images alike (0.02 apart): only sharp targets tell them apart in a short run.
            "teacher_temperature": config.schedule(start=0.004, peak=0.03, end=0.03, warmup=pretrain_steps // 2),
        },
        snapshot_steps=(snapshot,),
    )
    gram = config.following(
        pretrain,
        steps=steps - pretrain_steps,
        gram={"teacher": f"gram_teacher/{snapshot}", "crop_size": 192},
        optim={"freeze_last_layer": 0},
        schedules={
            "lr": config.schedule(start=5e-4, peak=5e-4, end=1e-5),
            "weight_decay": config.constant(0.1),
            "momentum": config.schedule(start=0.998, peak=0.998, end=1.0),
            "teacher_temperature": config.constant(0.03),
            "gram_weight": config.constant(2.0),
        },
    )
    config.set_phases(c, pretrain=pretrain, gram=gram)
    return c
