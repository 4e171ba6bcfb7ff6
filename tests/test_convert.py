"""`python -m dino_jax.convert`: what it prints and writes, its check, and wrong input."""

import json
import re

import numpy as np
import pytest

from dino_jax import convert
from dino_jax.weights import pth, pth_writer, store
from tests.torch_libraries import library
from tests.weights import tiny


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Returns an official file of a tiny DINOv2 with registers."""
    path = tmp_path_factory.mktemp("official") / "weights.pth"
    store.save(tiny.weights("dinov2_registers"), path, "official")
    return path


def test_accounts_for_every_tensor(file, tmp_path, capsys):
    out = tmp_path / "deep" / "timm"
    numbers, manifest = tmp_path / "n.json", tmp_path / "m.json"
    options = ["--to", "timm", "--out", str(out), "--json", str(numbers), "--manifest", str(manifest)]
    assert convert.main([str(file), "--heads", "3", *options]) == 0
    printed = capsys.readouterr().out
    assert "dinov2_custom (width 48, depth 3, patch 14, 4 registers), " in printed
    assert re.search(r"blocks\.\{0\.\.2\}\.attn\.qkv\.weight +144x48 ", printed)
    assert "transposed, stacked" in printed
    assert "read (official_v2): 50 matched" in printed
    assert "written (timm_dinov2_registers): 49 matched, 3 kept" in printed
    there = json.loads(manifest.read_text())
    assert there["counts"] == {"matched": 50}
    assert sum(len(row["theirs"]) for row in there["rows"]) == 50
    assert json.loads(numbers.read_text())["read/matched"] == 50
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "dino_jax.json", "dino_jax.safetensors")
    }


def test_nothing_is_overwritten_unless_forced(file, tmp_path, capsys):
    arguments = [str(file), "--heads", "3", "--to", "hf", "--out", str(tmp_path / "x")]
    assert convert.main(arguments) == 0
    before = (tmp_path / "x" / "model.safetensors").read_bytes()
    assert convert.main(arguments) == 2
    assert "x exists: choose another --out, or replace it with --force" in capsys.readouterr().err
    assert convert.main([*arguments, "--force"]) == 0
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_force_replaces_folders_of_weights_in_any_format(file, tmp_path):
    for to in ("orbax", "hf", "timm", "orbax"):
        arguments = [str(file), "--heads", "3", "--to", to, "--out", str(tmp_path / "x"), "--force"]
        assert convert.main(arguments) == 0


@pytest.mark.parametrize(
    ("there", "to", "message"),
    [
        ("x/thesis.txt", "hf", "x holds thesis.txt, which is not part of weights: choose another --out"),
        ("x/arrays/thesis.txt", "orbax", "x holds arrays, which is not part of weights"),
        ("x/config.json", "timm", "x is not a folder of weights (config.json)"),
        ("x/model.safetensors", "official", "x is a folder, which a file cannot replace"),
        ("x", "orbax", "x is a file or a link, which a folder cannot replace"),
    ],
)
def test_force_replaces_nothing_but_weights(file, there, to, message, tmp_path, capsys):
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    out = tmp_path / "x"
    assert convert.main([str(file), "--heads", "3", "--to", to, "--out", str(out), "--force"]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / there).read_text() == "mine"


def test_a_manifest_does_not_replace_a_folder(file, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert convert.main([str(file), "--heads", "3", "--manifest", str(tmp_path)]) == 2
    assert "is a folder, which a file cannot replace: give the path of a file" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_failure_leaves_nothing_half_written(file, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert convert.main([str(file), "--heads", "3", "--to", "hf", "--out", str(blocked / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE", "--to", "hf"], "--to FORMAT and --out PATH go together"),
        (["FILE", "--heads", "3", "--arch", "dinov2_vits14"], "not like dinov2_vits14 (width 384"),
        (["FILE", "--heads", "3", "--arch", "dinov2_vits15"], "did you mean dinov2_vits14"),
        (["/nowhere"], "there are no weights at /nowhere: check the path"),
        (["FILE", "--heads", "5"], "width 48 cannot have 5 heads: give a divisor of 48"),
        (["FILE"], "shapes do not show the number of heads: give it (--heads N, in Python heads=N)"),
    ],
)
def test_wrong_input_is_one_line(file, arguments, message, capsys):
    assert convert.main([str(file) if a == "FILE" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_network_without_a_class_in_transformers(tmp_path, capsys):
    store.save(tiny.weights("resnet"), tmp_path / "x.pth", "official")
    assert convert.main([str(tmp_path / "x.pth"), "--to", "hf", "--out", str(tmp_path / "y")]) == 2
    assert "there is no class for resnet_custom in format 'hf'" in capsys.readouterr().err


def test_incomplete_weights_print_their_manifest(file, tmp_path, capsys):
    state = dict(pth.read(file))
    del state["blocks.0.ls2.gamma"]
    pth_writer.write(tmp_path / "x.pth", state)
    assert convert.main([str(tmp_path / "x.pth"), "--heads", "3"]) == 2
    out, error = capsys.readouterr()
    assert "missing" in out
    assert "1 missing: blocks.0.ls2.gamma" in error


@pytest.mark.parametrize("to", ["hf", "official"])
def test_check_runs_both_sides(file, to, tmp_path, capsys):
    library("transformers")
    numbers = tmp_path / "n.json"
    options = ["--to", to, "--out", str(tmp_path / "x"), "--check", "--json", str(numbers)]
    assert convert.main([str(file), "--heads", "3", *options]) == 0
    printed = capsys.readouterr().out
    assert "22 of 22 parameters are the same" in printed
    assert "check: largest difference from transformers" in printed
    assert ("which has this network too" in printed) == (to == "official")
    found = {name: x for name, x in json.loads(numbers.read_text()).items() if name.startswith("difference/")}
    assert len(found) == 6  # three outputs at two sizes
    assert 0 < np.max(list(found.values())) < 1e-5
