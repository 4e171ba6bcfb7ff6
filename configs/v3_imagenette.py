"""The generations on Imagenette at 96 pixels (7,000 training, 1,800 test images): DINOv3 with a Gram phase, and others.

Variants: a device, `gpu` (ViT-S/8, 200 epochs) or `cpu` (a ViT of 2 M parameters, patch 12, 12 epochs), alone for
  DINOv3 or followed by `_no_gram` (the last phase without its Gram loss), `_v2` or `_v1`, on the same budget.
Paper: DINOv3 (arXiv 2508.10104), DINOv2 (2304.07193), DINO (2104.14294) at small size; not published settings.
Data: tars of <class>/<id>.jpg at data.path and data.test_path: of each class 700 and 180 images, resized to 96 pixels;
  images and masks at eval.dense.path, here CamVid ('' for none).
Hardware: `gpu`: one GPU with 80 GB, or 24 with --config.remat=full, and 16 cores. An H200 trained 1,640 images/s with
  cuDNN's attention, but learnt nothing at five times the learning rate: docs/results.md. As it stands: not run.
  `cpu`: 2 CPU cores, 75 minutes if nothing else runs; 20-NN accuracy 38.7 % (39.3 at best), where raw pixels have
  37.1 % (35.7 % with an unweighted vote) and the untrained network 28.1 %. `cpu_no_gram` 38.6 % (39.3 at best),
  `cpu_v2` 40.1 (40.3, with masks of fixed sizes), `cpu_v1` 35.1 (35.6).
Command: python -m dino_jax.main --config configs/v3_imagenette.py:cpu --workdir runs/imagenette \
  --config.data.path=TRAIN.tar --config.data.test_path=TEST.tar --config.eval.dense.path=
"""

from dino_jax import config

IMAGES = 7000
DEVICES = {
    "gpu": {
        "epochs": 200,
        "batch_size": 512,
        "gram_share": 0.2,
        "local_number": 8,
        # 5e-4 for 512 images (`lr_scaling`); at 2.8e-3, networks of this width learnt less or nothing: docs/results.md
        "lr": 1.8e-4,
        "lr_v1": 1.8e-4,
        "model": {"patch_size": 8, "drop_path": 0.1},
        "head": {"prototypes": 8192},
    },
    "cpu": {
        "epochs": 12,
        "batch_size": 64,
        "gram_share": 0.1,
        "local_number": 4,
        "lr": 2e-3,
        "lr_v1": 5e-4,  # without LayerScale the network moves at once
        "model": {"patch_size": 12, "width": 192, "depth": 4, "heads": 3},
        # Few prototypes for few samples: Sinkhorn-Knopp spreads the 128 global crops of a batch over all of them.
        "head": {"prototypes": 256, "hidden": 512, "bottleneck": 128},
    },
}


def get_config(variant: str = "gpu"):
    """Returns the recipe of a variant."""
    device, _, generation = variant.partition("_")
    generations = {"": dinov3, "no_gram": without_gram, "v2": dinov2, "v1": dino}
    if device not in DEVICES or generation not in generations:
        kinds = ", ".join(f"{name}{'_' if kind else ''}{kind}" for name in DEVICES for kind in generations)
        raise ValueError(f"configs/v3_imagenette.py has no variant {variant!r}: use {kinds}")
    budget = DEVICES[device]
    c = config.default()
    c.data.source = "tar"
    c.data.path = "../shared/data/objects-train.tar.gz"
    c.data.test_path = "../shared/data/objects-test.tar.gz"
    c.eval.size = 96
    c.checkpoint.every = 250
    c.eval.dense.path = "../shared/data/segmentation.tar.gz"
    # About 3 % of the time on a CPU, 7 % on an H200 in a short run: docs/results.md.
    c.eval.knn.every = c.eval.dense.every = c.eval.quality.every = 500 if device == "gpu" else 400
    c.remat = "matmuls"
    if device == "gpu":
        c.data.workers = 12
    else:
        c.precision = "float32"
    generations[generation](c, budget)
    return c


def pretraining(budget, *, steps, end):
    """Returns a phase of pretraining whose learning rate ends at `end`."""
    return config.phase(
        steps=steps,
        batch_size=budget["batch_size"],
        crops={"global_size": 96, "local_size": 48, "local_number": budget["local_number"]},
        optim={"patch_embed_multiplier": 1.0, "layer_decay": 1.0, "freeze_last_layer": 50},
        schedules={
            "lr": config.schedule(start=0.0, peak=budget["lr"], end=end, warmup=steps // 10),
            "weight_decay": config.schedule(start=0.04, peak=0.04, end=0.1),
            "momentum": config.schedule(start=0.98, peak=0.98, end=0.998),
            # New prototypes score all images alike (0.02 apart): only sharp targets tell them apart in a short run.
            "teacher_temperature": config.schedule(start=0.004, peak=0.03, end=0.03, warmup=steps // 2),
        },
    )


def set_networks(c, budget, name, *, gain, **options):
    """Sets a backbone of the budget's size, otherwise like `name`, and its heads."""
    c.model = config.model(name, **budget["model"] | options)
    c.dino_head = config.head(**budget["head"], gain=gain)
    c.ibot_head = config.head(**budget["head"], gain=gain)


def dinov3(c, budget, gram_weight=2.0):
    """Sets pretraining, then a last phase anchored to the teacher as it was halfway."""
    set_networks(c, budget, "dinov3_vits16", gain="none", layer_scale=1.0)
    steps = total_steps(budget)
    pretrain = pretraining(budget, steps=round((1 - budget["gram_share"]) * steps), end=budget["lr"] / 4)
    snapshot = pretrain.steps // 2
    pretrain.snapshot_steps = (snapshot,)
    gram = config.following(
        pretrain,
        steps=steps - pretrain.steps,
        optim={"freeze_last_layer": 0},
        schedules={
            "lr": config.schedule(start=budget["lr"] / 4, peak=budget["lr"] / 4, end=1e-5),
            "weight_decay": config.constant(0.1),
            "momentum": config.schedule(start=0.998, peak=0.998, end=1.0),
            "teacher_temperature": config.constant(0.03),
            "gram_weight": config.constant(gram_weight),
        },
    )
    if gram_weight:
        gram.gram.update(teacher=f"gram_teacher/{snapshot}", crop_size=192)
    config.set_phases(c, pretrain=pretrain, gram=gram)


def without_gram(c, budget):
    """Sets the same two phases without the Gram loss."""
    dinov3(c, budget, gram_weight=0.0)


def dinov2(c, budget):
    """Sets learned positions, weight-normalised heads and masks of drawn sizes."""
    set_networks(c, budget, "dinov2_vits14", gain="trained", layer_scale=1.0, pos_grid=positions(budget))
    pretrain = pretraining(budget, steps=total_steps(budget), end=1e-5)
    config.set_phases(c, pretrain=config.following(pretrain, masks={"drawn_sizes": True}))


def dino(c, budget):
    """Sets the first DINO loss alone, on centered targets."""
    set_networks(c, budget, "dino_vits16", gain="frozen", pos_grid=positions(budget))
    pretrain = config.following(
        pretraining(budget, steps=total_steps(budget), end=1e-5),
        targets="centering",
        loss={"ibot": 0.0, "koleo": 0.0},
        crops={"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4)},
        optim={"clip": "tensor", "last_layer_rests": True},
        schedules={
            "lr": {"peak": budget["lr_v1"]},
            "momentum": config.schedule(start=0.99, peak=0.99, end=0.999),
            "teacher_temperature": config.constant(0.04),
        },
    )
    config.set_phases(c, pretrain=pretrain)


def total_steps(budget):
    """Returns the steps of all phases together."""
    return budget["epochs"] * IMAGES // budget["batch_size"]


def positions(budget):
    """Returns the side of the grid of learned positions."""
    return 96 // budget["model"]["patch_size"]
