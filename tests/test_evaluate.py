import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest

from dino_jax import evaluate, pretrained, tasks
from dino_jax.tasks import TASKS, Result, open_task
from tests.tiny_model import tiny_model


class Planted:
    """A task that returns its option."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", required=True)
        parser.add_argument("--k", type=int, default=3)

    @staticmethod
    def run(model, options, folder) -> Result:
        picture = folder / "picture.png"
        picture.write_bytes(b"")
        return Result({"knn/accuracy": options.k / 10}, [["k", "accuracy"], [options.k, model.name]], [picture])


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(evaluate, "open_task", lambda name: Planted)
    monkeypatch.setattr(pretrained, "load", lambda *names, **_: (model(" from ".join(names)), None))


def model(name, channels=3):
    """Returns what stands in for a loaded network."""
    return SimpleNamespace(name=name, backbone=SimpleNamespace(in_channels=channels))


def test_every_task_has_its_module():
    for name in TASKS:
        task = open_task(name)
        parser = evaluate.task_parser(name, task.add_arguments)
        assert "--weights" in parser.format_help()
        assert callable(task.run)


def test_it_runs_a_task_and_writes_what_it_found(planted, tmp_path, capsys):
    arguments = ["knn", "--weights", "W", "--model", "M", "--data", "packaged", "--out", f"{tmp_path}/out"]
    assert evaluate.main([*arguments, "--json", f"{tmp_path}/numbers.json", "--k", "7"]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["knn/accuracy"] == 0.7
    assert np.isfinite(numbers["knn/seconds"])
    out = capsys.readouterr().out
    assert "M from W" in out
    assert f"picture: {tmp_path}/out/knn/picture.png" in out


def test_the_task_may_come_last(planted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folder of pictures is called like another task
    assert evaluate.main(["--weights", "W", "--model", "M", "--data", "packaged", "--out", "depth", "knn"]) == 0


def test_the_task_may_come_in_between(planted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--weights", "W", "--model", "M", "knn", "--data", "packaged"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--weights", "W", "--help"])
    assert ended.value.code == 0
    assert "segmentation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which task? There are knn, linear"),
        (["--pixels"], "which task? There are knn, linear"),
        (["sgmentation"], "there is no evaluation task 'sgmentation': did you mean 'segmentation'?"),
        (["zzz"], "there is no evaluation task 'zzz': there are knn"),
    ],
)
def test_a_wrong_task_is_one_line(arguments, message, capsys):
    assert evaluate.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_failing_task_writes_no_numbers(planted, monkeypatch, tmp_path, capsys):
    def fail(model, options, folder):
        raise ValueError("the masks are missing")

    monkeypatch.setattr(Planted, "run", staticmethod(fail))
    arguments = ["knn", "--weights", "W", "--data", "packaged", "--out", f"{tmp_path}/out", "--json", f"{tmp_path}/n"]
    assert evaluate.main(arguments) == 2
    assert capsys.readouterr().err == "error: the masks are missing\n"
    assert not any(tmp_path.iterdir())  # no numbers, and no folder for pictures


def test_where_the_numbers_go_is_checked_first(planted, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pretrained, "load", lambda *_: pytest.fail("the weights were loaded"))
    arguments = ["knn", "--weights", "W", "--data", "packaged", "--out", f"{tmp_path}/out", "--json"]
    assert evaluate.main([*arguments, f"{tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} cannot be written: it is a folder; give a file in it\n"
    (tmp_path / "file").touch()
    assert evaluate.main([*arguments, f"{tmp_path}/file/n.json"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["knn", "retrieval"])
def test_data_is_looked_for_before_weights_are_loaded(monkeypatch, tmp_path, capsys, task):
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: pytest.fail("the weights were loaded"))
    arguments = [task, "--weights", "W", "--data", f"{tmp_path}/x", "--out", f"{tmp_path}/out"]
    assert evaluate.main(arguments) == 2
    assert capsys.readouterr().err == f"error: --data {tmp_path}/x does not exist: check the path\n"
    if task == "knn":
        assert evaluate.main([*arguments[:4], str(tmp_path), *arguments[5:], "--test", "y"]) == 2
        assert capsys.readouterr().err == "error: --test y does not exist: check the path\n"


def test_type_channels_and_bits_reach_the_model(monkeypatch, tmp_path, capsys):
    asked = []

    def load(*names, **options):
        asked.append(options)
        return tiny_model(in_channels=options["in_chans"], dtype=options["dtype"]), None

    class Bits(Planted):
        @staticmethod
        def run(model, options, folder) -> Result:
            return Result({}, [[model.bits, str(model.backbone.dtype), model.backbone.in_channels]])

    monkeypatch.setattr(pretrained, "load", load)
    monkeypatch.setattr(evaluate, "open_task", lambda name: Bits)
    arguments = ["--weights", "W", "--data", "packaged", "--out", f"{tmp_path}/out"]
    assert evaluate.main(["knn", *arguments, "--in-chans", "5", "--bits", "16", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["16", "bfloat16", "5"]
    assert asked == [{"in_chans": 5, "mean": None, "std": None, "dtype": "bfloat16"}]
    with pytest.raises(SystemExit):  # it reads RGB of 8 bits
        evaluate.main(["depth", *arguments, "--bits", "16"])


def test_several_processes_are_one_line(planted, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DINO_JAX_DISTRIBUTED", "1")
    assert evaluate.main(["knn", "--weights", "W", "--data", "packaged", "--out", f"{tmp_path}/out"]) == 2
    assert "evaluate runs in one process, on all its devices: start it once" in capsys.readouterr().err


def test_weights_for_other_channels_are_one_line(planted, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pretrained, "load", lambda *names, **_: (model("M", channels=5), None))
    assert evaluate.main(["depth", "--weights", "W", "--data", "packaged", "--out", f"{tmp_path}/out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --weights W take 5 channels, but depth reads RGB images; other channels are read by ")
    assert err.count("\n") == 1


def test_an_architecture_is_no_weights(capsys):
    assert evaluate.main(["knn", "--weights", "dinov3_vits16", "--data", "packaged"]) == 2
    assert "--weights dinov3_vits16 names an architecture: give the path of weights" in capsys.readouterr().err


def test_the_outline_explains_all_tasks(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in tasks.TASKS)
