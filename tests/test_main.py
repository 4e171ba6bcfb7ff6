"""What a user gets to see: one clear line for anything wrong, exit code 2, and nothing of the libraries below."""

import json
import re
import shutil
import subprocess
import sys

import jax
import pytest

from dino_jax import main, recipe, startup, train
from dino_jax.gram_teacher import save_snapshot
from dino_jax.workdir import Workdir
from tests.data.images import encode, photograph
from tests.program import ROOT
from tests.tiny_recipe import get_config

TINY = "--config=tests/tiny_recipe.py"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def refused(capsys, *arguments):
    """Runs the program in this process; returns its single line on standard error."""
    assert main.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [
        line for line in err.splitlines() if line.startswith("error") or not re.search("device|training images", line)
    ]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture
def workdir(tmp_path):
    return f"--workdir={tmp_path / 'run'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.sead=1"], "--config.sead: there is no such key; did you mean seed?"),
        (["--config.seed=one"], "--config.seed=one: expected int, such as 0"),
        (["--config.seed"], "--config.seed needs a value: --config.seed=VALUE"),
        (["--sead=1"], "unknown argument '--sead=1': values of the recipe are changed by --config.KEY=VALUE"),
        (["--config.phases.gram.crops.global_size=30"], "is not a multiple of model.patch_size = 8: use 32"),
        (["--config.data.path="], "data.path: it is empty, but data source 'folder' needs a path to the images"),
        (["--config.data.path=/nowhere"], "data.path: /nowhere does not exist"),
        (["--config.mesh.fsdp=5"], "mesh.fsdp = 5 do not use the"),
    ],
)
def test_wrong_arguments(capsys, workdir, tmp_path, arguments, message):
    assert message in refused(capsys, TINY, workdir, *arguments)
    assert not (tmp_path / "run").exists()


def test_no_workdir(capsys):
    assert "--workdir DIR is missing" in refused(capsys, TINY)


def test_no_such_recipe(capsys, workdir):
    assert "configs/none.py: there is no such file" in refused(capsys, "--config=configs/none.py", workdir)


def test_empty_folder(capsys, workdir, tmp_path):
    (tmp_path / "images").mkdir()
    line = refused(capsys, TINY, workdir, f"--config.data.path={tmp_path / 'images'}")
    assert line.startswith(f"data.path: no images found in {tmp_path / 'images'}")


def test_workdir_of_another_configuration(capsys, program, tmp_path):
    arguments = program.arguments(tmp_path)
    changes = main.overrides([argument for argument in arguments if argument.startswith("--config.")])
    with Workdir(tmp_path) as workdir:
        workdir.adopt(recipe.load("tests/tiny_recipe.py", changes))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')  # a step was taken
    line = refused(capsys, *arguments, "--config.seed=3")
    assert "belongs to a run with another config (seed: 0 there, 3 now): use the same values, or another" in line


def test_missing_gram_snapshot_is_noticed_before_the_first_step(capsys, program, tmp_path):
    other = tmp_path / "other" / "gram_teacher"
    save_snapshot(other / "100", {"cls_token": jax.numpy.zeros(7)})
    arguments = program.arguments(tmp_path / "run", phases__gram__gram__teacher=other / "200")
    line = refused(capsys, *arguments)
    assert line.startswith(f"there is no Gram snapshot at {other / '200'}; {other} holds 100: set gram.teacher to one")
    line = refused(capsys, *program.arguments(tmp_path / "run", phases__gram__gram__teacher=other / "100"))
    assert line.startswith(f"Gram snapshot {other / '100'} is of another network (")
    (other / "100" / "_METADATA").unlink()
    line = refused(capsys, *program.arguments(tmp_path / "run", phases__gram__gram__teacher=other / "100"))
    assert line.startswith(f"Gram snapshot {other / '100'} cannot be read (")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_too_large_for_this_machine(capsys, workdir, program):
    line = refused(
        capsys, "--config=configs/v3_7b.py", workdir, f"--config.data.path={program.images}", "--config.mesh.fsdp=1"
    )
    assert "GiB per device" in line
    assert "but a device has" in line


def test_loops_are_chosen_by_the_smaller_head(monkeypatch, workdir):
    chosen = []
    monkeypatch.setattr(startup, "choose_loops", chosen.append)
    monkeypatch.setattr(train, "run", lambda config, workdir: None)
    assert main.main([TINY, workdir, "--config.dino_head.hidden=512"]) == 0
    assert chosen == [32]


def test_keys(capsys):
    assert main.main([TINY, "--config.seed=4", "--keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--config.seed=4" in lines
    assert "--config.phases.gram.schedules.lr.peak=0.001" in lines


def test_help_says_how_to_list_the_keys(capsys):
    with pytest.raises(SystemExit) as raised:
        main.main(["--help"])
    assert raised.value.code == 0
    assert "--config FILE --keys" in capsys.readouterr().out


@pytest.mark.slow
def test_a_normal_run_prints_our_lines_only(uninterrupted):
    said = (uninterrupted / "stderr").read_text()
    starts = ("1 device", "18 training images", "student and heads", "phase ", "step ")
    assert all(line.startswith(starts) for line in said.splitlines()), said
    assert "next refresh at step 10" in said
    assert "trained teacher" in (uninterrupted / "stdout").read_text()


@pytest.mark.slow
def test_bad_images_are_listed_and_too_many_of_them_stop_the_run(program, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(program.images / "train", images)
    (images / "empty.png").touch()
    (images / "text.jpg").write_text("not an image")
    (images / "cut.png").write_bytes(encode(photograph(48, 56))[:300])
    short = {
        "data__path": images,
        "data__test_path": "",
        "phase_order": "('pretrain',)",
        "phases__pretrain__steps": 6,
    }
    done = program.train(tmp_path / "run", **short, data__max_bad_share=0.5)
    assert done.returncode == 0, done.stderr
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_images.jsonl").read_text().splitlines()]
    assert {entry["name"] for entry in listed} == {"empty.png", "text.jpg", "cut.png"}
    stopped = program.train(tmp_path / "strict", **short, data__max_bad_share=0.01)
    assert stopped.returncode == 2
    assert "images drawn cannot be used, more than the share of 0.01" in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr


@pytest.mark.slow
def test_full_disk_keeps_the_last_checkpoint(program, uninterrupted, tmp_path):
    """A limit on the size of files stands for the full disk."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / "14")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from dino_jax.main import main; sys.exit(main(sys.argv[1:]))"
    )
    full = subprocess.run(
        [sys.executable, "-c", limited, *program.arguments(workdir)],
        cwd=ROOT,
        env=program.environment(),
        capture_output=True,
        text=True,
    )
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    folder = workdir / "checkpoints"
    assert f"error: checkpoint 14 cannot be written to {folder}: file too large" in full.stderr
    assert "checkpoint 12 is kept: free space, then run the same command" in full.stderr
    # What is left is what a killed save leaves, from which a run continues: see test_resume.
    assert (folder / "12" / "_CHECKPOINT_METADATA").exists()
    assert not (folder / "14").exists()
    assert (workdir / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


def test_processes_may_differ_in_nothing_but_places():
    config = get_config()
    agreed = train.settings(config)
    assert "model.drop_path" in agreed
    assert recipe.flatten(config).keys() - agreed.keys() == set(train.PLACES)
