import errno
import fcntl
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from dino_jax.config import set_phases
from dino_jax.workdir import FREE, Workdir
from tests.tiny_recipe import get_config


def test_second_process_is_refused_and_told_by_whom(tmp_path):
    hold = f"from dino_jax.workdir import Workdir; w = Workdir({str(tmp_path)!r}); print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        said = rf"{re.escape(str(tmp_path))} is in use by process {other.pid} on .*: wait for it, stop it"
        with pytest.raises(ValueError, match=said):
            Workdir(tmp_path)
    finally:
        other.kill()
        other.wait()
    with Workdir(tmp_path):  # the lock went with the process
        pass


def test_same_configuration_is_adopted_again(tmp_path):
    for _ in range(2):
        with Workdir(tmp_path) as workdir:
            assert workdir.adopt(get_config()) == ""
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')


MAY_CHANGE = {
    "mesh.data": 1,
    "mesh.fsdp": 2,
    "remat": "full",
    "model.attention": "cudnn",
    "checkpoint.every": 5,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_every": 6,
    "log.pictures": True,
    "nonfinite_limit": 0,
    "eval.size": 64,
    "eval.knn.k": 5,
    "eval.knn.every": 7,
    "eval.dense.path": "masks",
    "eval.quality.images": 9,
    "data.workers": 2,
    "data.path": "another disk",
    "data.homogeneous_path": "another disk",
    "data.test_path": "another disk",
    "data.max_bad_share": 0.5,
}


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_where_and_how_fast_it_computes_and_what_it_reports_may_change(tmp_path, key):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config.update_from_flattened_dict({key: MAY_CHANGE[key]})
    with Workdir(tmp_path) as workdir:
        assert workdir.adopt(config) == ""
    assert json.loads((tmp_path / "config.json").read_text())[key] == MAY_CHANGE[key]


def test_all_that_may_change_is_tried():
    assert not [start for start in FREE if not any(key.startswith(start) for key in MAY_CHANGE)]


def test_options_that_an_earlier_version_did_not_have_were_off(tmp_path):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["phases.pretrain.masks.circular_shift"]
    file.write_text(json.dumps(values))
    on = config.copy_and_resolve_references()
    on.phases["pretrain"].masks.circular_shift = True
    with Workdir(tmp_path) as workdir:
        with pytest.raises(ValueError, match=r"circular_shift: None there, True now"):
            workdir.adopt(on)
        assert workdir.adopt(config) == ""


def test_dense_scores_that_choose_a_snapshot_are_of_the_same_images(tmp_path):
    config = get_config()
    config.eval.dense.path = "masks"
    config.phases["gram"].gram.teacher = "best_dense"
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    dense = config.eval.dense
    for name, value in (("path", "x"), ("images", 7)):
        before = dense[name]
        dense[name] = value
        with Workdir(tmp_path) as workdir, pytest.raises(ValueError, match=rf"eval.*{name}: {before!r} there"):
            workdir.adopt(config)
        dense[name] = before
    config.eval.size = 64  # of other protocols
    with Workdir(tmp_path) as workdir:
        assert workdir.adopt(config) == ""


def test_each_process_may_have_things_in_another_place(tmp_path, monkeypatch):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config.init.weights = "here/weights.pth"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Workdir(tmp_path) as workdir:
        assert workdir.adopt(config) == ""
        config.seed = 3
        with pytest.raises(ValueError, match=r"another config \(seed: 0 there, 3 now\)"):
            workdir.adopt(config)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError, match=r"init\.weights: '' there"):
        workdir.adopt(config)


def test_a_lost_configuration_is_noticed(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.adopt(get_config())
    save(tmp_path, 3)
    (tmp_path / "config.json").unlink()
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError, match=r"config.json is missing, but a run has begun"):
        workdir.adopt(get_config())


def test_another_configuration_lists_the_keys(tmp_path):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config.seed = 5
    config.phases["pretrain"].crops.global_scale = (0.5, 1.0)
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError) as raised:
        workdir.adopt(config)
    assert "belongs to a run with another config" in str(raised.value)
    assert "phases.pretrain.crops.global_scale: [0.32, 1.0] there, [0.5, 1.0] now; seed: 0 there, 5 now" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", "bfloat16"),
        ("share_head", True),
        ("model.drop_path", 0.4),
        ("model.layer_scale", 1.0),
        ("data.mean", (0.5, 0.5, 0.5)),
        ("data.bits", 16),
        ("data.homogeneous_share", 0.1),
        ("init.weights", "x"),
        ("log.every", 3),
    ],
)
def test_what_the_numbers_depend_on_may_not_change(tmp_path, key, value):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config.update_from_flattened_dict({key: value})
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError, match=rf"another config \({key}: "):
        workdir.adopt(config)


def save(workdir, step):
    """Makes what Orbax leaves of a whole checkpoint."""
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    (workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").touch()


def test_what_a_begun_phase_recomputes_may_change(tmp_path):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
        save(tmp_path, 3)
        config.phases["pretrain"].remat = config.phases["gram"].remat = config.remat = "full"
        assert workdir.adopt(config) == "phases.gram.remat: '' there, 'full' now"


@pytest.mark.parametrize(("saved", "free"), [(0, True), (8, True), (9, False)])
def test_phases_to_come_may_change(tmp_path, saved, free):
    """The tiny recipe's second phase begins after step 8."""
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    save(tmp_path, saved)
    config.phases["gram"].gram.teacher = "ema"
    with Workdir(tmp_path) as workdir:
        if free:
            words = "phases.gram.gram.teacher: 'gram_teacher/4' there, 'ema' now"
            assert workdir.adopt(config) == words
            assert workdir.adopt(config) == ""
        else:
            with pytest.raises(ValueError, match="another config"):
                workdir.adopt(config)


def test_phases_may_be_added_and_not_taken_away(tmp_path):
    config, longer = get_config(), get_config()
    set_phases(longer, **{name: config.phases[name] for name in config.phase_order}, high=config.phases["gram"])
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
        save(tmp_path, 14)  # the end of all phases
        assert workdir.adopt(longer) == "phase high is new"
        (tmp_path / "checkpoints" / "99").mkdir()  # no checkpoint
        assert workdir.adopt(longer) == ""
        save(tmp_path, 15)
        with pytest.raises(ValueError, match="phase_order"):
            workdir.adopt(config)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"loss": {"ibot": 0.0}}, {}, "iBOT head"),
        ({}, {"targets": "centering"}, "centers of DINO scores"),
    ],
)
def test_phases_to_come_need_what_checkpoints_hold(tmp_path, first, second, words):
    config = get_config()
    for name in config.phase_order:
        config.phases[name].update(first)
    other = get_config()
    other.phases["pretrain"].update(first)
    other.phases["gram"].update(second)
    for before, now, said in (
        (config, other, f"lack the {words}, which a phase now needs"),
        (other, config, f"hold the {words}, which no phase needs any more"),
    ):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        with Workdir(tmp_path) as workdir:
            workdir.adopt(before)
            (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
            kept = (tmp_path / "config.json").read_bytes()
            with pytest.raises(ValueError, match=f"{said}: leave loss.ibot and targets of later phases as they were"):
                workdir.adopt(now)
        assert (tmp_path / "config.json").read_bytes() == kept


def test_results_are_forgotten_when_the_run_goes_on(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.forget_results()
        workdir.write_results({"train/step": 8.0})
        assert (tmp_path / "results.json").exists()
        workdir.forget_results()
        assert not (tmp_path / "results.json").exists()


def test_lost_checkpoints_are_noticed(tmp_path):
    config = get_config()
    config.checkpoint.every = 3
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
        workdir.check_new()
        (tmp_path / "metrics.jsonl").write_text('{"step": 6}\n')
        workdir.check_new()  # the first save may not have come to its end
        (tmp_path / "metrics.jsonl").write_text('{"step": 7}\n')
        with pytest.raises(
            ValueError, match=r"holds metrics.jsonl, but no checkpoint: restore .* or delete it to train"
        ):
            workdir.check_new()
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(ValueError, match=r"holds metrics.jsonl and results.json, .* or delete both to train"):
            workdir.check_new()
    (tmp_path / "results.json").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"step": 6}\n')
    config.checkpoint.every = 1
    with Workdir(tmp_path) as workdir:  # what was written under the longer period is judged by it
        workdir.adopt(config)
        workdir.check_new()


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with Workdir(tmp_path):
        pass
    assert "cannot lock (Function not implemented): let no other process use it" in capsys.readouterr().err


def test_a_run_that_took_no_step_gives_way(tmp_path):
    config = get_config()
    for seed in (0, 1):
        config.seed = seed
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "metrics.jsonl").touch()
        with Workdir(tmp_path) as workdir:
            workdir.adopt(config)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_many_differing_keys_are_cut_short(tmp_path):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config.data.mean = config.data.std
    for part in ("loss", "gram"):
        for name, value in config.phases["pretrain"][part].items():
            config.phases["pretrain"][part][name] = not value if isinstance(value, bool) else value * 2 or 1
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError, match=r"and \d+ more"):
        workdir.adopt(config)


LACKING = "no checkpoint.every"


@pytest.mark.parametrize("text", ['{"seed": 0', "[]", '{"phase_order": ["pretrain"]}', '{"phase_order": 3}', LACKING])
def test_damaged_configuration(tmp_path, text):
    if text == LACKING:
        with Workdir(tmp_path / "other") as workdir:
            workdir.adopt(get_config())
        values = json.loads((tmp_path / "other" / "config.json").read_text())
        text = json.dumps({key: x for key, x in values.items() if key != "checkpoint.every"})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "config.json").write_text(text)
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError, match=r"config.json is damaged: restore it"):
        workdir.adopt(get_config())


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run cannot be used: Not a directory"):
        Workdir(tmp_path / "file" / "run")


def test_other_images_are_noticed(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.adopt_images(5, "image {}".format)
        workdir.adopt_images(6, "image {}".format)  # no step was taken
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
        workdir.adopt_images(6, "image {}".format)
        with pytest.raises(ValueError, match=r"was trained on 6 images, now there are 5: put the same images back"):
            workdir.adopt_images(5, "image {}".format)
        with pytest.raises(ValueError, match="now there are 6, with other names"):
            workdir.adopt_images(6, "photograph {}".format)
        (tmp_path / "images.json").unlink()
        workdir.adopt_images(5, "image {}".format)


@pytest.mark.parametrize("text", ["", "{}", "[1]"])
def test_a_damaged_record_of_the_images_is_named(tmp_path, text):
    with Workdir(tmp_path) as workdir:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
        (tmp_path / "images.json").write_text(text)
        with pytest.raises(ValueError, match=r"images\.json is damaged: delete it"):
            workdir.adopt_images(5, "image {}".format)


def test_names_need_not_be_text(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.adopt_images(1, lambda _: os.fsdecode(b"caf\xe9.png"))
        assert json.loads((tmp_path / "images.json").read_text())["images"] == 1
