"""Runs on images of 16 bits and of other channels than red, green and blue."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile

import dino_jax
from dino_jax import build, config, evaluate, initial, phases, sharding, train
from dino_jax.models import inflate_patch_embed
from tests.test_initial import STATISTICS, loader
from tests.tiny_recipe import get_config

MEAN, STD = (0.01, 0.02, 0.03, 0.04, 0.05), (0.01,) * 5


def write_bands(folder, *, channels=5):
    """Writes two classes of TIFFs of 12 bits; each channel of an image has one value, but for a corner."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for number in range(4):
            image = np.broadcast_to(rng.integers(1, 4096, channels), (40, 48, channels)).astype(np.uint16)
            image[:4, :4] = 0
            path = folder / label / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig" if channels > 1 else None)
    return folder


def recipe(folder, *, channels=5, bits=0):
    """Returns a run of three steps with few terms, as its subject is what it reads."""
    c = get_config()
    c.model.update({"depth": 1, "width": 16, "drop_path": 0.0, "in_channels": channels})
    c.data.path = c.data.test_path = str(folder)
    c.data.mean, c.data.std, c.data.bits = MEAN[:channels], STD[:channels], bits
    few = {"loss": {"ibot": 0.0, "koleo": 0.0}, "crops": {"local_number": 1}}
    config.set_phases(c, pretrain=config.following(c.phases.pretrain, steps=3, **few))
    return c


@pytest.mark.parametrize(("channels", "bits"), [(5, 0), (3, 16)])
def test_a_run_and_what_reads_it(tmp_path, capsys, channels, bits):
    c = recipe(write_bands(tmp_path / "bands", channels=channels), channels=channels, bits=bits)
    c.log.pictures = channels == 5  # once
    results = train.run(c, tmp_path / "run")
    assert results["train/step"] == 3
    assert {"knn/pixels", "knn/trained", "quality/rankme"} <= results.keys()
    assert (tmp_path / "run" / "pictures" / "cosine.png").exists() == (channels == 5)
    assert "brightest" not in capsys.readouterr().err  # their own statistics say how bright they are
    model, params = dino_jax.load(tmp_path / "run")
    assert params["patch_embed"]["kernel"].shape == (8, 8, channels, 16)
    np.testing.assert_allclose((model.mean, model.std), (MEAN[:channels], STD[:channels]))
    assert model.bits == bits
    data = ["--data", str(tmp_path / "bands"), "--test", str(tmp_path / "bands"), "--size", "32", "--fit", "crop"]
    numbers = str(tmp_path / "knn.json")
    weights = ["--weights", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--json", numbers]
    assert evaluate.main(["knn", *weights, *data, "--k", "3", "1", "--pixels"]) == 0
    found = json.loads(Path(numbers).read_text())
    assert (found["knn/k3_t0.07"], found["knn/pixels_k3"]) == (results["knn/trained"], results["knn/pixels"])
    assert found["knn/k1_t0.07"] == 1  # each image finds itself, which images that are all black would not


@pytest.mark.parametrize(("channels", "bits"), [(5, 0), (3, 16), (1, 0)])
def test_all_bits_reach_the_crops(tmp_path, channels, bits):
    c = recipe(write_bands(tmp_path, channels=channels), channels=channels, bits=bits)
    source, _ = build.sources(c)
    batch = next(build.batches(c, phases.in_order(c)[0], source))
    for name in ("global_crops", "local_crops"):
        assert batch[name].dtype == np.uint16
        assert batch[name].shape[-1] == channels
        for crops, index in zip(batch[name], batch["ids"], strict=True):
            value = source[index]["image"][20, 20]
            np.testing.assert_array_equal(np.median(crops, axis=(1, 2)), np.broadcast_to(value, (len(crops), channels)))


def test_without_statistics_they_are_measured(tmp_path):
    c = recipe(write_bands(tmp_path / "bands"))
    c.data.mean, c.data.std = (0.5,) * 3, (0.2,) * 3
    with pytest.raises(ValueError, match=r"data\.mean has 3 values and data.std 3 for model.in_channels = 5") as raised:
        train.run(c, tmp_path / "run")
    pixels = np.concatenate([tifffile.imread(file).reshape(-1, 5) for file in sorted(tmp_path.glob("bands/*/*.tif"))])
    said = str(raised.value).partition("--config.data.mean=")[2].split(" --config.data.std=")
    expected = (pixels / 65535).mean(0), (pixels / 65535).std(0)
    np.testing.assert_allclose([np.fromstring(text, sep=",") for text in said], expected, rtol=1e-3)
    assert not (tmp_path / "run").exists()
    c.model.in_channels = 4
    with pytest.raises(
        ValueError, match=r"data\.path: none of .* such as a/0\.tif: 5 channels, where the network takes 4"
    ):
        train.run(c, tmp_path / "run")


def test_a_channel_without_content_is_named(tmp_path):
    image = np.full((40, 48, 5), 300, np.uint16)
    image[:20, :, [0, 1, 3, 4]] = 200
    tifffile.imwrite(tmp_path / "0.tif", image, photometric="minisblack", planarconfig="contig")
    c = recipe(tmp_path)
    c.data.test_path, c.data.std = "", (0.1,)
    with pytest.raises(ValueError, match=r"data\.path: channel 3 of 5 is the same everywhere: leave it out"):
        train.run(c, tmp_path / "run")


def test_the_packaged_photographs_have_no_bands(tmp_path):
    c = recipe(write_bands(tmp_path / "bands"))
    c.data.homogeneous_path, c.data.homogeneous_share = "packaged", 0.5
    with pytest.raises(ValueError, match=r"data\.homogeneous_path: the packaged photographs are RGB of 8 bits"):
        build.sources(c)


def test_weights_for_three_channels_are_spread(tmp_path):
    c = recipe(tmp_path)
    networks, mesh = build.networks(c, shards=1), sharding.make_mesh(devices=jax.devices()[:1])
    c.model.in_channels = 3
    rgb = build.networks(c, shards=1)
    weights = initial.drawn(rgb, mesh, seed=5)
    found = initial.loaded(str(tmp_path), networks, mesh, load=loader(rgb.backbone, weights), statistics=(MEAN, STD))
    jax.tree.map(np.testing.assert_array_equal, found, inflate_patch_embed(weights, 5))
    assert found["patch_embed"]["kernel"].shape == (8, 8, 5, 16)
    load = loader(networks.backbone, found)
    with pytest.raises(ValueError, match=r"model\.in_channels is 5 there and 3 here: set --config.model.in_channels=5"):
        initial.loaded(str(tmp_path), rgb, mesh, load=load, statistics=STATISTICS)
