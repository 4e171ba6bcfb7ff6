"""The smallest run with every part: two phases, a snapshot, a Gram refresh, several checkpoints, k-NN and health.

Used as `--config tests/tiny_recipe.py --config.data.path=FOLDER --config.data.test_path=FOLDER`.
"""

from dino_jax import config


def get_config():
    """Returns the recipe: 8 steps of pretraining, 6 with a Gram teacher."""
    c = config.default()
    c.precision = "float32"
    c.model = config.model("dinov3_vits16", patch_size=8, width=32, depth=2, heads=2, layer_scale=0.1, drop_path=0.5)
    c.dino_head = config.head(prototypes=64, hidden=32, bottleneck=16)
    c.ibot_head = config.head(prototypes=64, hidden=32, bottleneck=16)
    c.eval.size = 32
    c.eval.knn.k = 3
    c.checkpoint.every = 3
    c.log.every = 1
    c.log.health_every = 8  # once: it is a program of its own in every phase
    c.log.pictures = False

    pretrain = config.phase(
        steps=8,
        batch_size=8,
        crops={"global_size": 32, "local_size": 16, "local_number": 2},
        masks={"group_size": 4},
        optim={"lr_scaling": "none", "freeze_last_layer": 2},
        schedules={
            "lr": config.schedule(start=0.0, peak=1e-3, end=1e-4, warmup=2),
            "momentum": config.constant(0.9),
        },
        snapshot_steps=(4,),
    )
    gram = config.following(
        pretrain,
        steps=6,
        gram={"teacher": "gram_teacher/4", "crop_size": 64, "refresh_every": 2, "max_refreshes": 1},
        schedules={"gram_weight": config.constant(2.0)},
    )
    config.set_phases(c, pretrain=pretrain, gram=gram)
    return c
