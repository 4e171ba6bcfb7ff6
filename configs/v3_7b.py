"""DINOv3 ViT-7B/16: a million steps of pretraining, then Gram anchoring, then high resolution.

Paper: DINOv3 (arXiv 2508.10104), sections 3, 4 and 5.1; the three phases of the public configurations.
Hardware: 256 accelerators with 80 GB or more (16 images each); the published run took 61,440 H100-hours. A step takes
  56 GB of an H100, and in the third phase, which computes each block twice, 31 to 45. With --config.remat=full the
  first two do so as well, and need 9 and 16 GB.
Time and score: not run; those figures are the compiler's (docs/results.md).
Command, on every host: DINO_JAX_DISTRIBUTED=1 python -m dino_jax.main --config configs/v3_7b.py --workdir DIR
  --config.data.path=IMAGES --config.data.homogeneous_path=IMAGENET_TRAIN --config.data.test_path=IMAGENET_VAL
On several TPU slices or GPU clusters joined by a slower network: --config.mesh.data=SLICES.

Differs from the published run: local crops of high resolution have 160 px where theirs have 168, of which whole patches
cover 160.
"""

from dino_jax import config


def get_config():
    """Returns the recipe."""
    c = config.default()
    c.model = config.model("dinov3_vit7b16", drop_path=0.4, rope_rescale=2.0)
    c.dino_head = config.head(prototypes=262_144, hidden=8192, bottleneck=512)
    c.ibot_head = config.head(prototypes=98_304, hidden=4096, bottleneck=384)
    c.remat = "matmuls"
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.data.homogeneous_share = 0.1  # of batches of ImageNet-1k alone, which data.homogeneous_path names
    c.data.workers = 8  # of each process, of which there is one per host or per GPU
    c.checkpoint.keep_every = 100_000
    c.log.health_every = 1000  # its rank of 4096 features costs seconds
    c.eval.size = 256

    pretrain = config.phase(
        steps=1_000_000,
        batch_size=4096,
        crops={"global_size": 256, "local_size": 112, "horizontal_flips": False},
        loss={"koleo_group_size": 16},
        optim={"b2": 0.99, "clip_norm": 30.0, "layer_decay": 0.98, "freeze_last_layer": 5000},
        schedules={
            "lr": config.schedule(start=0.0, peak=5e-5, end=5e-5, warmup=100_000),
            "weight_decay": config.constant(0.04),
            "momentum": config.constant(0.994),
            "teacher_temperature": config.schedule(start=0.04, peak=0.07, end=0.07, warmup=100_000),
        },
        # Early teachers have the best dense features (section 4.1): to anchor to one of them instead,
        # --config.phases.gram.gram.teacher=gram_teacher/200000, with refresh_every and max_refreshes at 0.
        snapshot_steps=(100_000, 200_000),
    )
    gram = config.following(
        pretrain,
        # How long is ours: the third and last Gram teacher serves as long as the others.
        steps=40_000,
        gram={
            "teacher": "ema",
            "crop_size": 512,
            "refresh_every": 10_000,
            "first_refresh": 10_000,
            "max_refreshes": 3,
        },
        optim={"freeze_last_layer": 0},
        schedules={
            "lr": config.constant(3e-5),
            "momentum": config.constant(0.999),
            "teacher_temperature": config.constant(0.07),
            # From 1 to 0.5 as the phase begins; how fast is ours.
            "local_weight": config.schedule(start=1.0, peak=0.5, end=0.5, warmup=10_000),
            # Of the mean over the entries, as in the public configuration (the paper writes the sum).
            "gram_weight": config.constant(2.0),
        },
    )
    high_resolution = config.following(
        gram,
        steps=30_000,  # of the public configuration; the paper writes 10,000
        batch_size=2048,
        remat="full",
        crops={
            "global_size": 512,  # 3 batches in 10
            "local_size": 112,
            "mixture": ((0.3, 768, 112, 1152), (0.3, 768, 160, 1152), (0.05, 768, 224, 1152), (0.05, 768, 336, 1152)),
        },
        masks={"group_size": 8},  # of the batch of one in 256 devices, which are the most with this value
        # The 7B's own teacher, as the phase begins.
        gram={"teacher": "ema", "crop_size": 768, "refresh_every": 0, "first_refresh": 0, "max_refreshes": 0},
        schedules={
            "lr": config.schedule(start=0.0, peak=0.0, end=1.25e-5, cosine=10_000),  # a cosine upwards
            "local_weight": config.constant(0.5),
            "gram_weight": config.constant(1.5),
        },
    )
    config.set_phases(c, pretrain=pretrain, gram=gram, high_resolution=high_resolution)
    return c
