import pytest

from dino_jax.phases import check_batch, in_order
from dino_jax.validate import validate
from tests.tiny_recipe import get_config


def test_the_tiny_recipe_is_valid():
    validate(get_config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float16"}, "precision = 'float16' must be one of float32, bfloat16"),
        ({"data.source": "foldr"}, "data.source = 'foldr' must be one of packaged, folder, tar, arrayrecord"),
        ({"model.drop_path": 1.5}, "model.drop_path = 1.5 must be between 0 and 1"),
        ({"model.heads": 3}, "model.width = 32 over model.heads = 3 must give a whole multiple of 4"),
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
        ({"phases.gram.gram.teacher": "none"}, "teacher = 'none' but schedules.gram_weight is not 0"),
        ({"phases.gram.gram.refresh_every": 0}, "max_refreshes = 1 has no effect with refresh_every = 0"),
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
