import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile

from dino_jax import extraction, feature_files, features, pretrained, sharding
from dino_jax.extraction import Extraction, extract_features
from tests.data.images import encode, photograph
from tests.test_extraction import Photographs
from tests.tiny_model import tiny_model

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("npz", "parquet", "arrayrecord")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(extraction, "MOST_IMAGES", 8)
    monkeypatch.setattr(extraction, "LEAST_IMAGES", 8)


def work(model, source=None, *, size=16, outputs=("cls", "patches")):
    source = Photographs() if source is None else source
    return Extraction(model, source, size=size, outputs=outputs, batch_size=4, mesh=sharding.make_mesh())


def parts(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def require(kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_with_names(model, tmp_path, kind):
    require(kind)
    numbers = features.write_parts(work(model), tmp_path, kind=kind)
    assert (numbers["features/images"], numbers["features/bad_images"]) == (20, 1)
    expected = extract_features(model, Photographs(), size=16, outputs=("cls", "patches"), batch_size=4)
    found = features.read(tmp_path)
    assert set(found) == {"names", *expected}
    assert found["names"].tolist() == [f"{index}.jpg" for index in expected["ids"]]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    bad = [json.loads(line) for line in (tmp_path / "bad_images.jsonl").read_text().splitlines()]
    assert bad == [{"id": 5, "name": "5.jpg", "reason": "not an image"}]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_and_damaged_parts_are_made_again_to_the_same_bytes(model, tmp_path, kind, capsys):
    require(kind)
    features.write_parts(work(model), tmp_path, kind=kind)
    first = parts(tmp_path)
    names = sorted(name for name in first if name.startswith("features-"))
    assert len(names) == 3
    content = first[names[0]]
    (tmp_path / names[0]).write_bytes(content[: len(content) // 2])
    (tmp_path / names[2]).unlink()
    source = Photographs()
    features.write_parts(work(model, source), tmp_path, kind=kind)
    assert parts(tmp_path) == first
    assert capsys.readouterr().err.count("is damaged") == 1
    assert not set(source.read) >= set(range(8, 16)), "the whole part in the middle was not read again"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_without_usable_images_does_not_change_types(model, tmp_path, kind, dtype):
    require(kind)
    one_bad = Extraction(model, Photographs(), size=16, mesh=sharding.make_mesh(), images_per_shard=1)
    features.write_parts(one_bad, tmp_path, kind=kind, dtype=dtype)
    found = features.read(tmp_path)
    assert found["cls"].shape == (20, 16)
    assert [found[name].dtype for name in ("ids", "labels", "cls")] == [np.int32, np.int32, np.dtype(dtype)]


@pytest.mark.parametrize("bad", [0, 7])
def test_a_mended_image_is_taken_back(model, tmp_path, bad):
    """Also the first, one of those by which sources are told apart."""
    damaged, mended, other = (Photographs(count=24) for _ in range(3))
    damaged.bad, mended.bad, other.bad = bad, None, 3
    features.write_parts(work(model, damaged), tmp_path, kind="npz")
    numbers = features.write_parts(work(model, mended), tmp_path, kind="npz")
    assert numbers["features/bad_images"] == 0
    assert features.read(tmp_path)["ids"].tolist() == list(range(24))
    with pytest.raises(ValueError, match="holds features of other settings"):  # what was usable is not by now
        features.write_parts(work(model, other), tmp_path, kind="npz")


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_not_utf8(model, tmp_path, kind):
    require(kind)

    class Named(Photographs):
        def name(self, index):
            return f"\udcff{index}.jpg"

    features.write_parts(work(model, Named(count=2)), tmp_path, kind=kind)
    assert features.read(tmp_path)["names"].tolist() == ["\\xff0.jpg", "\\xff1.jpg"]


def test_half_floats_are_stored(model, tmp_path):
    features.write_parts(work(model), tmp_path, kind="npz", dtype="float16")
    assert features.read(tmp_path)["cls"].dtype == np.float16


def test_processes_write_parts_of_their_own(model, tmp_path):
    features.write_parts(work(model), tmp_path / "one", kind="npz")
    for process in (1, 0):
        features.write_parts(work(model), tmp_path / "two", kind="npz", process=(process, 2))
    one, two = parts(tmp_path / "one"), parts(tmp_path / "two")
    assert two.pop("bad_images-1.jsonl") == b""
    assert one == two


def test_killed_extraction_continues_to_the_same_bytes(model, tmp_path):
    script = """
import sys, time
from pathlib import Path
from dino_jax import extraction, feature_files, features, pretrained, sharding
from tests.test_extraction import Photographs
from tests.tiny_model import tiny_model
extraction.MOST_IMAGES = extraction.LEAST_IMAGES = 8
folder = Path(sys.argv[1])
class Stuck(Photographs):
    def __getitem__(self, index):
        if index >= 16 and list(folder.glob("features-00000*")):  # in the third part; all are sampled before the first
            time.sleep(600)
        return super().__getitem__(index)
work = extraction.Extraction(tiny_model(), Stuck(), size=16, outputs=("cls",), batch_size=4, mesh=sharding.make_mesh())
features.write_parts(work, folder, kind="npz")
"""
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("killed/features-00001*")):  # what is half written would stay for an hour
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("killed/features-00002*")), "it was killed in the middle"
    for folder in ("killed", "whole"):
        features.write_parts(work(model, outputs=("cls",)), tmp_path / folder, kind="npz")
    assert parts(tmp_path / "killed") == parts(tmp_path / "whole")


def test_other_settings_need_another_folder(model, tmp_path):
    features.write_parts(work(model), tmp_path, kind="npz")
    with pytest.raises(ValueError, match=r"other settings \(size 16 there, 24 now\): choose another --out"):
        features.write_parts(work(model, size=24), tmp_path, kind="npz")
    for source, words in (
        (Photographs(count=22), r"\(number of images 21 there, 22 now\)"),
        (Photographs(first_seed=50), r"\(other images\)"),
    ):
        with pytest.raises(ValueError, match=f"other settings {words}: choose another --out"):
            features.write_parts(work(model, source), tmp_path, kind="npz")
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(ValueError, match="damaged: remove it"):
        features.write_parts(work(model), tmp_path, kind="npz")


def test_reading_an_unfinished_or_foreign_folder(model, tmp_path):
    with pytest.raises(ValueError, match=r"no features\.json"):
        features.read(tmp_path)
    features.write_parts(work(model), tmp_path, kind="npz", process=(0, 2))
    with pytest.raises(ValueError, match="lacks 1 of 3 parts, such as features-00001-of-00003"):
        features.read(tmp_path)


def write_images(folder, count=3):
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.png").write_bytes(encode(photograph(seed=index)))
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command with a tiny network; returns its exit code and the last line on stderr."""

    def load(path, *, in_chans, mean, std, dtype, heads=2):
        model = tiny_model(in_channels=in_chans or 3, heads=heads, dtype=jnp.dtype(dtype))
        return dataclasses.replace(model, mean=mean or model.mean, std=std or model.std), None

    monkeypatch.setattr(pretrained, "load", load)

    def run(images, *options):
        folder = str(tmp_path / "out")
        code = features.main(["--images", str(images), "--weights", "x", "--out", folder, "--size", "16", *options])
        return code, capsys.readouterr().err.strip().splitlines()[-1:]

    return run


def test_the_command_writes_parts_and_speed(command, tmp_path):
    images = write_images(tmp_path / "images")
    code, _ = command(images, "--part", "2", "--outputs", "cls,mean_patch", "--json", str(tmp_path / "speed.json"))
    assert code == 0
    assert features.read(tmp_path / "out")["names"].tolist() == ["0.png", "1.png", "2.png"]
    assert len(list((tmp_path / "out").glob("features-*-of-00002.npz"))) == 2
    numbers = json.loads((tmp_path / "speed.json").read_text())
    assert numbers["features/images"] == 3
    assert numbers["features/images_per_second"] > 0


def test_sixteen_bits_and_five_channels_reach_the_model(command, tmp_path):
    (tmp_path / "bands").mkdir()
    bands = np.random.default_rng(0).integers(0, 4096, (2, 16, 16, 5)).astype(np.uint16)
    for index, image in enumerate(bands):
        tifffile.imwrite(tmp_path / "bands" / f"{index}.tif", image, photometric="minisblack", planarconfig="contig")
    numbers = ["0.03"] * 5
    code, _ = command(tmp_path / "bands", "--in-chans", "5", "--mean", *numbers, "--std", *numbers)
    assert code == 0
    model = tiny_model(in_channels=5)
    expected = model(((bands / 65535 - 0.03) / 0.03).astype(np.float32))["cls"]
    np.testing.assert_allclose(features.read(tmp_path / "out")["cls"], expected, atol=1e-4)


def test_heads_reach_the_model(command, tmp_path):
    assert command(write_images(tmp_path / "images"), "--heads", "4")[0] == 0
    assert "heads = 4" in json.loads((tmp_path / "out" / "features.json").read_text())["backbone"]


def test_half_precision_reaches_the_model(command, tmp_path):
    """Its features are of other settings than those of single precision."""
    images = write_images(tmp_path / "images")
    assert command(images, "--dtype", "bfloat16", "--outputs", "cls,patches")[0] == 0
    found = features.read(tmp_path / "out")["cls"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.astype(jnp.bfloat16).astype(np.float32))
    code, (words,) = command(images, "--outputs", "cls,patches")
    assert code == 2 and "holds features of other settings (backbone" in words


def test_fit_layers_and_half_floats_reach_the_parts(command, tmp_path):
    assert command(write_images(tmp_path / "images"), "--fit", "squash", "--layers", "2", "--float16")[0] == 0
    settings = json.loads((tmp_path / "out" / "features.json").read_text())
    assert (settings["fit"], settings["layers"], settings["dtype"]) == ("squash", 2, "float16")
    found = features.read(tmp_path / "out")["cls"]
    assert (found.shape, found.dtype) == ((3, 2, 16), np.float16)


def test_a_full_disk_is_an_error_that_the_program_tells(tmp_path, monkeypatch):
    array_record = pytest.importorskip("array_record.python.array_record_module")

    class Full(array_record.ArrayRecordWriter):
        def close(self):
            raise RuntimeError("write() failed: No space\nleft on device")

    monkeypatch.setattr(array_record, "ArrayRecordWriter", Full)
    with pytest.raises(OSError, match=r"No space left on device: .*x\.array_record could not be written"):
        feature_files.write(tmp_path / "x.array_record", {"ids": np.arange(3)}, "arrayrecord")
    assert not list(tmp_path.iterdir())


def test_out_is_no_file(command, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, said = command(write_images(tmp_path / "images"))
    assert code == 2
    assert "cannot be written" in said[0]
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--outputs", "clss"), "outputs must be some of"),
        (("--in-chans", "5", "--bits", "8"), "--bits 8: 8 bits are read of RGB only, not of 5 channels"),
        (("--in-chans", "5"), "none of the 3 images can be used"),
        (("--part", "0"), "a part must hold at least 1 image"),
    ],
)
def test_bad_input_is_one_line_and_writes_no_features(command, tmp_path, options, message):
    code, said = command(write_images(tmp_path / "images"), *options)
    assert code == 2
    assert said[0].startswith("error: ")
    assert message in said[0]
    assert not list(tmp_path.glob("out/features-*"))
