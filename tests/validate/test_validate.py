import math

import pytest
from ml_collections import ConfigDict

from dino_jax.config import following, set_phases
from dino_jax.phases import check_batch, in_order
from dino_jax.validate import validate
from tests.tiny_recipe import get_config


def test_the_tiny_recipe_is_valid():
    validate(get_config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float16"}, "precision = 'float16' must be one of float32, bfloat16"),
        (
            {"data.source": "packaged", "data.path": "images"},
            "data.path = 'images' has no effect with data.source = 'packaged'",
        ),
        (
            {f"phases.pretrain.loss.{name}": 0.0 for name in ("dino", "ibot", "koleo")},
            "phases.pretrain.loss.dino, ibot and koleo are all 0: nothing would be learnt",
        ),
        (
            {"phases.gram.gram.teacher": "emma"},
            "teacher = 'emma' must be one of none, ema, best_dense, gram_teacher/STEP",
        ),
        ({"data.source": "foldr"}, "data.source = 'foldr' must be one of packaged, folder, tar, arrayrecord"),
        ({"data.max_bad_share": 1.5}, "data.max_bad_share = 1.5 must be between 0 and 1"),
        ({"model.drop_path": 1.0}, "model.drop_path = 1.0 must be 0 or more and below 1"),
        ({"phases.gram.optim.b2": 1.0}, "phases.gram.optim.b2 = 1.0 must be 0 or more and below 1"),
        (
            {"phases.gram.schedules.momentum.peak": 99.6},
            r"momentum (start 0.9, peak 99.6, end 0.9) must be between 0",
        ),
        ({"phases.gram.schedules.lr.peak": -1.0}, "lr (start 0, peak -1, end 0.0001) must be 0 or more"),
        ({"phases.gram.masks.ratio": (0.0, 0.05)}, "masks.ratio = (0.0, 0.05) of 16 patches is less than one"),
        ({"phases.gram.crops.local_scale": (0.0, 0.0)}, "local_scale = (0.0, 0.0) must be two shares"),
        (
            {
                "phases.gram.schedules.gram_weight.start": 0.0,
                "phases.gram.schedules.gram_weight.peak": 0.0,
                "phases.gram.schedules.gram_weight.end": 0.0,
            },
            "teacher = 'gram_teacher/4' has no effect with schedules.gram_weight = 0",
        ),
        (  # without a warm-up, a schedule never has the value of its start
            {"phases.gram.schedules.gram_weight.peak": 0.0, "phases.gram.schedules.gram_weight.end": 0.0},
            "teacher = 'gram_teacher/4' has no effect with schedules.gram_weight = 0",
        ),
        (
            {"phases.gram.optim.last_layer_rests": True, "phases.gram.optim.freeze_last_layer": 0},
            "last_layer_rests = True has no effect with freeze_last_layer = 0",
        ),
        ({"model.rope_jitter": 0.5}, "model.rope_jitter = 0.5 must be 1 or more"),
        ({"ibot_head.gain": "frozen"}, "ibot_head.gain = 'frozen': freeze both or none"),
        ({"model.heads": 3}, "model.heads = 3 must divide model.width = 32"),
        ({"model.heads": 16}, "model.width = 32 over model.heads = 16 must be a multiple of 4"),
        ({"dino_head.gain": "fixed"}, "dino_head.gain = 'fixed' must be one of none, frozen, trained"),
        ({"phases.gram.targets": "center"}, "phases.gram.targets = 'center' must be one of sinkhorn_knopp, centering"),
        ({"phases.gram.center_momentum": 1.1}, "phases.gram.center_momentum = 1.1 must be between 0 and 1"),
        ({"phases.gram.optim.name": "lars"}, "phases.gram.optim.name = 'lars' must be one of adamw, sgd"),
        ({"phases.gram.optim.name": "sgd"}, "optim.name differs between phases"),
        ({"phases.gram.optim.clip": "all"}, "phases.gram.optim.clip = 'all' must be one of module, tensor"),
        ({"phases.gram.optim.freeze_backbone": -2}, "phases.gram.optim.freeze_backbone = -2 must be -1 or more"),
        ({"phases.gram.loss.ibot": -1.0}, "phases.gram.loss.ibot = -1.0 must be 0 or more"),
        ({"phases.gram.masks.probability": 0.0}, "masks.probability = 0 leaves none of the 8 crops"),
        (
            {"phases.gram.masks.probability": 0.1},
            "so iBOT has no patches to predict: raise it, or set",
        ),
        ({"phases.gram.gram.refresh_every": -1}, "phases.gram.gram.refresh_every = -1 must be 0 or more"),
        (
            {
                "phases.gram.gram.image_level": False,
                "phases.gram.gram.remove_negatives": "both",
                "phases.gram.batch_size": 2048,
            },
            "gram.image_level = False with remove_negatives = 'both' compares all 65,536 patches of a batch with each "
            "other, but at most 32,768 can be",
        ),
        (
            {
                "phases.gram.gram.stats": True,
                "phases.gram.gram.remove_negatives": "both",
                "phases.gram.batch_size": 2048,
            },
            "gram.stats = True with remove_negatives = 'both' compares all 65,536 patches",
        ),
        (
            {"data.test_path": "val", "eval.knn.path": "imagenet"},
            "data.test_path = 'val' has no effect with eval.knn.path = 'imagenet', which has images that vote",
        ),
        (
            {"data.homogeneous_path": "imagenet"},
            "data.homogeneous_path = 'imagenet' has no effect with data.homogeneous_share = 0: set the share",
        ),
        ({"data.homogeneous_share": 1.0}, "data.homogeneous_share = 1.0 must be 0 or more and below 1"),
        *(
            ({"phases.pretrain.crops.mixture": ((0.3, 24, size, 0),)}, f"crops.mixture: crops.local_size = {size} must")
            for size in (0, -8)
        ),
        ({"model.rope_base": -5.0}, "model.rope_base = -5.0 must be above 0"),
        ({"model.ffn": "swiglu", "model.ffn_align": 0}, "model.ffn_align = 0 must be above 0"),
        ({"model.norm_epsilon": -1.0}, "model.norm_epsilon = -1.0 must be above 0"),
        ({"checkpoint.keep_every": 7}, "checkpoint.keep_every = 7 is not a multiple of checkpoint.every = 3"),
        ({"phases.gram.optim.clip_norm": -3.0}, "phases.gram.optim.clip_norm = -3.0 must be above 0"),
        ({"phases.gram.schedules.teacher_temperature.start": 0.0}, "teacher_temperature must stay above 0"),
        ({"seed": -1}, "seed = -1 must be 0 or more"),
        ({"seed": 2**32}, "seed = 4294967296 must be 0 or more and below 2**32"),
        ({"model.ffn_ratio": 0.001}, "model.ffn_ratio = 0.001 leaves the feed-forward layer without a channel"),
        ({"phases.gram.batch_size": 1}, "phases.gram.batch_size = 1 must be 2 or more"),
        ({"eval.size": 8}, "eval.size = 8 holds a single patch: use 16 or more"),
        (
            {"phases.pretrain.loss.ibot": 0.0},
            "phases.gram.loss.ibot begins after a phase without it, whose updates AdamW counts for its head too: "
            "set phases.gram.schedules.lr.warmup to 6 or more, or have the loss",
        ),
        (
            {"phases.pretrain.loss.dino": 0.0},
            "phases.gram.loss.dino begins after a phase without it, whose updates AdamW counts for its head too",
        ),
        ({"phases.gram.crops.global_size": 8}, "global_size = 8 holds a single patch: use 16 or more"),
        ({"data.std": (0.2, 0.0, 0.2)}, "data.std = (0.2, 0.0, 0.2) must be above 0 in each channel"),
        ({"model.in_channels": 0}, "model.in_channels = 0 must be above 0"),
        ({"data.bits": 8}, "data.bits = 8 must be one of 0, 16"),
        ({"data.bits": 16, "eval.dense.path": "x"}, "eval.dense.path has RGB images of 8 bits: set it to ''"),
        ({"data.mean": (0.5, math.nan, 0.5)}, "data.mean = (0.5, nan, 0.5) must be finite numbers"),
        ({"data.source": "packaged", "data.bits": 16}, "data.source = 'packaged' has RGB photographs of 8 bits"),
        ({"model.in_channels": 4, "eval.dense.path": "x"}, "eval.dense.path has RGB images of 8 bits"),
        ({"eval.size": 36}, "eval.size = 36 is not a multiple of model.patch_size = 8: use 32"),
        ({"phases.gram.loss.ibot": 0.0, "phases.gram.gram.stats": True}, "need masks, which loss.ibot = 0 does not"),
        (
            {"share_head": True, "phases.pretrain.loss.ibot": 0.0, "phases.gram.loss.ibot": 0.0},
            "share_head = True has no effect with loss.ibot = 0",
        ),
        ({"phase_order": ()}, "phase_order is empty"),
        ({"phase_order": ("pretrain", "grum")}, "phase_order names 'grum', but phases holds gram, pretrain"),
        ({"log.every": 0}, "log.every = 0 must be above 0"),
        ({"log.health_every": 0}, "log.health_every = 0 must be above 0"),
        ({"checkpoint.every": 0}, "checkpoint.every = 0 must be above 0"),
        ({"checkpoint.keep_last": 0}, "checkpoint.keep_last = 0 must be above 0"),
        ({"nonfinite_limit": 0}, "nonfinite_limit = 0 must be above 0"),
        ({"data.workers": -1}, "data.workers = -1 must be 0 or more"),
        ({"phases.pretrain.steps": 0}, "phases.pretrain.steps = 0 must be above 0"),
        ({"phases.gram.crops.global_size": 30}, "global_size = 30 is not a multiple of model.patch_size = 8: use 32"),
        ({"phases.gram.gram.crop_size": 60}, "gram.crop_size = 60 is not a multiple of model.patch_size = 8: use 64"),
        ({"phases.gram.masks.ratio": (0.5, 0.1)}, "masks.ratio = (0.5, 0.1) must be two shares"),
        ({"phases.gram.masks.group_size": 3}, "masks.group_size = 3 does not divide phases.gram.batch_size = 8"),
        ({"phases.gram.loss.koleo_group_size": 3}, "koleo_group_size = 3 must divide the batch of 8"),
        ({"phases.gram.loss.koleo_topk": 8}, "exceed loss.koleo_topk = 8"),
        ({"phases.gram.schedules.lr.warmup": 7}, "warmup = 7 and cosine = 0 do not fit into phases.gram.steps = 6"),
        ({"phases.pretrain.snapshot_steps": (9,)}, "snapshot_steps = (9,): 9 is not within 1..8"),
        ({"phases.pretrain.snapshot_steps": ((9,),)}, "snapshot_steps = ((9,),): (9,) is not within 1..8"),
        ({"phases.gram.crops.mixture": (0.5, 64)}, "(0.5, 64): 0.5 must be (share of the batches, global_size, "),
        ({"phases.gram.crops.mixture": ((0.5, 64, 16),)}, "(0.5, 64, 16) must be (share of the batches, global_size, "),
        ({"phases.gram.crops.mixture": ((0.0, 64, 16, 64),)}, "the share 0 must be above 0"),
        ({"phases.gram.crops.mixture": ((0.5, 64, 16, 0),)}, "and gram.crop_size = 64: give the Gram teacher a size"),
        ({"phases.gram.crops.mixture": ((0.5, 64, 16, 64), (0.5, 48, 16, 64))}, "their sum must be below 1"),
        (
            {"phases.gram.crops.mixture": ((0.5, 60, 16, 64),)},
            "phases.gram.crops.mixture: crops.global_size = 60 is not a multiple of model.patch_size = 8: use 64",
        ),
        (
            {"phases.gram.crops.mixture": ((0.5, 64, 16, 60),)},
            "phases.gram.crops.mixture: gram.crop_size = 60 is not a multiple of model.patch_size = 8: use 64",
        ),
        ({"phases.gram.gram.teacher": "none"}, "teacher = 'none' but schedules.gram_weight is not 0"),
        ({"phases.gram.gram.refresh_every": 0}, "max_refreshes = 1 has no effect with refresh_every = 0"),
        ({"phases.gram.gram.teacher": "best_dense"}, "set snapshot_every of such a phase, and eval.dense.path"),
        ({"phases.pretrain.snapshot_every": -1}, "phases.pretrain.snapshot_every = -1 must be 0 or more"),
        ({"eval.knn.every": -1}, "eval.knn.every = -1 must be 0 or more"),
        ({"phases.gram.gram.teacher": "gram_teacher/5"}, "'gram_teacher/5' is not a snapshot of an earlier phase"),
    ],
)
def test_problem_is_named_with_its_fix(changes, message):
    config = get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as raised:
        validate(config)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_ibot_needs_a_mask_token():
    config = get_config()
    config.model = ConfigDict(config.model.to_dict() | {"masking": False})
    with pytest.raises(ValueError, match=r"loss\.ibot needs a mask token, which model\.masking = False does not have"):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases.pretrain.loss.ibot": 1.0}, "loss.ibot needs a transformer, whose patches can be masked"),
        ({"phases.pretrain.gram.teacher": "ema"}, "gram.teacher needs a transformer"),
        ({"remat": "full"}, "remat = 'full' needs a transformer"),
        ({"phases.pretrain.remat": "full"}, "phases.pretrain.remat = 'full' needs a transformer"),
        (
            {"phases.pretrain.crops.local_size": 4},
            "phases.pretrain.crops.local_size = 4 is less than the 8 px of a patch",
        ),
        ({"eval.size": 8}, "eval.size = 8 holds a single patch: use 16 or more"),
        ({"eval.size": 36}, "eval.size = 36 is not a multiple of the network's stride, 8: use 32"),
        ({"phases.pretrain.crops.global_size": 8}, "pretrain.crops.global_size = 8 holds a single patch: use 16"),
        ({"phases.pretrain.crops.global_size": 15}, "pretrain.crops.global_size = 15 holds a single patch: use 16"),
    ],
)
def test_what_a_convolutional_network_cannot_do(changes, message):
    config = get_config()
    config.model = ConfigDict({"depths": (1, 1), "widths": (8, 16), "layer_scale": 0.1, "in_channels": 3})
    config.phase_order = ("pretrain",)
    config.phases.pretrain.loss.ibot = 0.0
    validate(config)
    for key, value in changes.items():
        *parents, name = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[name] = value
    with pytest.raises(ValueError) as raised:
        validate(config)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_loaded_weights_may_be_the_gram_teacher():
    config = get_config()
    config.phases.gram.gram.update({"teacher": "gram_teacher/0", "refresh_every": 0, "max_refreshes": 0})
    with pytest.raises(ValueError, match="is not a snapshot of an earlier phase"):
        validate(config)
    config.init.weights = "some/where"
    validate(config)


@pytest.mark.parametrize("step", [4, 8, 10, 12])
def test_every_snapshot_of_earlier_phases_may_be_the_gram_teacher(step):
    """Also the teachers that a Gram phase begins with (8) and that it refreshes (10, 12)."""
    config = get_config()
    gram = config.phases.gram
    gram.gram.update({"teacher": "ema", "refresh_every": 2, "max_refreshes": 2})
    set_phases(config, pretrain=config.phases.pretrain, gram=gram, last=following(gram))
    config.phases.last.gram.update({"teacher": f"gram_teacher/{step}", "refresh_every": 0, "max_refreshes": 0})
    validate(config)
    config.phases.last.gram.teacher = f"gram_teacher/{step + 1}"
    with pytest.raises(ValueError, match=r"\(gram_teacher/10, gram_teacher/12, gram_teacher/4, gram_teacher/8\)"):
        validate(config)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (3, "phases.pretrain.batch_size = 8 cannot be split over 3 devices: use 9"),
        (4, "masks.group_size = 4 does not divide the 2 samples of a device"),
    ],
)
def test_batch_must_fit_the_mesh(shards, message):
    with pytest.raises(ValueError) as raised:
        check_batch(in_order(get_config())[0], shards)
    assert message in str(raised.value)
