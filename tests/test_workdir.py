import json
import subprocess
import sys

import pytest

from dino_jax.workdir import Workdir
from tests.tiny_recipe import get_config


def test_second_process_is_refused_and_told_by_whom(tmp_path):
    hold = f"from dino_jax.workdir import Workdir; w = Workdir({str(tmp_path)!r}); print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            ValueError, match=rf"{tmp_path} is in use by process {other.pid} on .*: wait for it, stop it"
        ):
            Workdir(tmp_path)
    finally:
        other.kill()
        other.wait()
    with Workdir(tmp_path):  # the lock went with the process
        pass


def test_same_configuration_is_adopted_again(tmp_path):
    config = get_config()
    for workers in (0, 2):  # where and how fast it computes, and what it reports, may change
        config.data.workers = workers
        config.data.path, config.eval.size, config.eval.knn.k = f"disk {workers}", 32 + workers, 3 + workers
        with Workdir(tmp_path) as workdir:
            workdir.adopt(config)
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')


def test_another_configuration_lists_the_keys(tmp_path):
    config = get_config()
    with Workdir(tmp_path) as workdir:
        workdir.adopt(config)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config.seed = 5
    config.phases["gram"].crops.global_scale = (0.5, 1.0)
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError) as raised:
        workdir.adopt(config)
    assert "belongs to a run with another config" in str(raised.value)
    assert "phases.gram.crops.global_scale: [0.32, 1.0] there, [0.5, 1.0] now; seed: 0 there, 5 now" in str(
        raised.value
    )


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
    for name in config.phases["gram"].loss:
        config.phases["gram"].loss[name] += 1
        config.phases["pretrain"].loss[name] += 1
    with Workdir(tmp_path) as workdir, pytest.raises(ValueError, match="and 3 more"):
        workdir.adopt(config)


def test_damaged_configuration(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "config.json").write_text('{"seed": 0')
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
        with pytest.raises(ValueError, match=r"was trained on 6 images, now there are 5: bring the same back"):
            workdir.adopt_images(5, "image {}".format)
        with pytest.raises(ValueError, match="now there are 6, of other names"):
            workdir.adopt_images(6, "photograph {}".format)
        (tmp_path / "images.json").unlink()
        workdir.adopt_images(5, "image {}".format)
