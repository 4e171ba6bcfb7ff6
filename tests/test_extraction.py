import dataclasses
import doctest
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import dino_jax
from dino_jax import extraction, host_memory, sharding
from dino_jax.data import fingerprint as fingerprints
from dino_jax.data.decode import BadImage
from dino_jax.data.fingerprint import fingerprint
from dino_jax.data.fit import centre_crop
from dino_jax.extraction import Extraction, extract_features
from tests.data.images import photograph
from tests.program import cpus
from tests.tiny_model import tiny_model

ROOT = Path(__file__).resolve().parent.parent
BAD = 5


class Photographs:
    """Images in memory; number BAD cannot be used."""

    class_names = ("a", "b")
    bad: int | None = BAD

    def __init__(self, count=21, shapes=((24, 32),), first_seed=0):
        self.count, self.shapes, self.first_seed, self.read = count, shapes, first_seed, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.bad:
            raise BadImage("not an image")
        shape = self.shapes[index % len(self.shapes)]
        return {"image": photograph(*shape, seed=self.first_seed + index), "label": index % 2}

    def name(self, index):
        return f"{index}.jpg"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


GOOD = [index for index in range(21) if index != BAD]


def test_features_are_those_of_the_model_in_order_without_bad_images(model, capsys):
    source = Photographs()
    outputs = ("cls", "mean_patch", "patches", "registers")
    found = extract_features(model, source, size=16, outputs=outputs, batch_size=4)
    assert found["ids"].tolist() == GOOD
    assert found["labels"].tolist() == [index % 2 for index in GOOD]
    images = np.stack([centre_crop(source[index]["image"], size=16) for index in GOOD])
    expected = model(model.normalize(images))
    for name in ("cls", "patches", "registers"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    np.testing.assert_allclose(found["mean_patch"], np.asarray(expected["patches"]).mean((1, 2)), atol=1e-5)
    assert "1 of 21 images cannot be used, such as 5.jpg (not an image)" in capsys.readouterr().err


def test_several_layers_come_on_an_axis_after_the_images(model):
    source = Photographs(count=3)
    found = extract_features(model, source, size=16, outputs=("cls", "patches"), layers=2, batch_size=4)
    images = np.stack([centre_crop(source[index]["image"], size=16) for index in range(3)])
    blocks = model.intermediate(model.normalize(images), 2)
    assert found["patches"].shape == (3, 2, 2, 2, 16)
    for layer in range(2):
        np.testing.assert_allclose(found["cls"][:, layer], blocks[layer]["cls"], atol=1e-5)


def test_native_images_keep_their_pixels(model):
    shapes = ((24, 32), (17, 23), (7, 40))
    source = Photographs(count=9, shapes=shapes)
    found = extract_features(model, source, how="native", batch_size=2)
    assert found["ids"].tolist() == [0, 1, 3, 4, 6, 7]  # 5 is bad, and every third one lower than a patch
    image = source[1]["image"][0:16, 4:20]  # the centre, rounded to the even
    np.testing.assert_allclose(found["cls"][1], model(model.normalize(image[None]))["cls"][0], atol=1e-5)


def test_squashed_images_lose_nothing_at_the_sides(model):
    found = extract_features(model, Photographs(count=2), size=16, how="squash")
    cropped = extract_features(model, Photographs(count=2), size=16)
    assert np.abs(found["cls"] - cropped["cls"]).max() > 1e-3


def test_cached_shards_are_read_and_damaged_ones_made_again(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extraction, "MOST_IMAGES", 8)
    monkeypatch.setattr(extraction, "LEAST_IMAGES", 8)
    options = {"size": 16, "outputs": ("cls", "mean_patch"), "batch_size": 4, "cache": tmp_path}
    first = extract_features(model, Photographs(), **options)
    (folder,) = tmp_path.iterdir()
    files = sorted(folder.glob("*.npz"))
    assert [file.name for file in files] == ["00000.npz", "00001.npz", "00002.npz"]
    content = [file.read_bytes() for file in files]

    source = Photographs()
    again = extract_features(model, source, **options)
    assert len(set(source.read)) <= fingerprints.SAMPLED + 1  # for the fingerprint and the report only
    assert all(np.array_equal(first[name], again[name]) for name in first)

    files[0].write_bytes(content[0][:-200] + bytes(200))
    files[1].write_bytes(content[1][:100])
    files[2].unlink()
    repaired = extract_features(model, Photographs(), **options)
    assert all(np.array_equal(first[name], repaired[name]) for name in first)
    assert capsys.readouterr().err.count("is damaged") == 2
    assert [file.read_bytes() for file in files] == content
    assert not list(folder.glob(".*"))


def test_a_mended_image_is_no_longer_left_out_of_the_cache(model, tmp_path, capsys):
    source = Photographs(count=24)  # of which the one is not among those that name the cache
    assert len(extract_features(model, source, size=16, cache=tmp_path)["ids"]) == 23

    class Mended(Photographs):
        def __getitem__(self, index):
            return super().__getitem__(index) if index != BAD else super().__getitem__(0) | {"id": BAD}

    found = extract_features(model, Mended(count=24), size=16, cache=tmp_path)
    assert found["ids"].tolist() == list(range(24))
    assert len(list(tmp_path.iterdir())) == 1
    again = extract_features(model, source, size=16, cache=tmp_path)  # now it is kept
    np.testing.assert_array_equal(again["cls"], found["cls"])


def test_the_cache_belongs_to_the_classes_as_well(model, tmp_path):
    extract_features(model, Photographs(count=4), size=16, cache=tmp_path)
    renamed = Photographs(count=4)
    renamed.class_names = ("b", "c")
    extract_features(model, renamed, size=16, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_belongs_to_weights_images_and_settings(model, tmp_path):
    source = Photographs(count=4)
    extract_features(model, source, size=16, cache=tmp_path)
    extract_features(model, source, size=16, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    extract_features(tiny_model(seed=1), source, size=16, cache=tmp_path)
    extract_features(model, Photographs(count=4, first_seed=9), size=16, cache=tmp_path)
    extract_features(model, source, size=24, cache=tmp_path)
    extract_features(model, source, size=16, outputs=("mean_patch",), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_cache_belongs_to_whatever_else_changes_features(model):
    def key(model, **settings):
        return Extraction(model, Photographs(count=4), size=16, mesh=sharding.make_mesh(), **settings).key

    models = [
        dataclasses.replace(model, mean=(0.4, 0.5, 0.5)),
        dataclasses.replace(model, std=(0.25, 0.25, 0.2)),
        dataclasses.replace(model, backbone=model.backbone.clone(heads=4)),  # of the same parameters
    ]
    keys = {key(model), *map(key, models), key(model, how="centre"), key(model, how="squash"), key(model, layers=2)}
    assert len(keys) == 7
    assert key(model, batch_size=2) in keys


def test_the_cache_belongs_to_running_statistics_too(tmp_path):
    network, _ = dino_jax.load("random:dino_resnet50", depths=(1, 1), channels=4)
    other = dataclasses.replace(network, batch_stats=jax.tree.map(lambda x: 3 * x + 0.1, network.batch_stats))
    first, second = (extract_features(m, Photographs(count=4), size=32, cache=tmp_path) for m in (network, other))
    assert np.abs(first["cls"] - second["cls"]).max() > 0.01
    assert len(list(tmp_path.iterdir())) == 2


def test_shards_shrink_for_large_outputs(model):
    mesh = sharding.make_mesh()
    small = Extraction(model, Photographs(), size=16, mesh=mesh)
    large = Extraction(model, Photographs(), size=1600, outputs=("patches",), mesh=mesh)
    assert small.images_per_shard == 4096
    assert large.images_per_shard == 64  # 200 x 200 x 16 floats are 2.4 MiB


def test_fingerprint_sees_names_and_pixels():
    assert fingerprint(Photographs()) == fingerprint(Photographs())
    assert fingerprint(Photographs()) != fingerprint(Photographs(first_seed=1))
    assert fingerprint(Photographs()) != fingerprint(Photographs(count=20))


def test_what_is_smaller_than_a_patch_is_no_mended_image(model, tmp_path, capsys, monkeypatch):
    class Tiny(Photographs):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample | {"image": sample["image"][:4, :4]} if index == 1 else sample

    source = Tiny(count=3)
    found = extract_features(model, source, how="native", cache=tmp_path)
    assert found["ids"].tolist() == [0, 2]
    assert "readable now" not in capsys.readouterr().err
    monkeypatch.setattr(Extraction, "compute", lambda *_: pytest.fail("the cache was not used"))
    assert extract_features(model, source, how="native", cache=tmp_path)["ids"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 20}, "size 20 is not a multiple of the patch of tiny, 8 px: use 16"),
        ({"outputs": ("cls", "clss")}, "outputs must be some of cls, mean_patch, gem_patch, patches, registers"),
        ({"outputs": ()}, "got none"),
        ({"how": "stretch"}, "fit must be one of centre, crop, squash, native"),
        ({"how": "native", "outputs": ("patches",)}, "cannot be stacked"),
        ({"layers": 0}, "at least 1"),
        ({"layers": 4}, "tiny has 3 blocks, asked for the last 4: use fewer layers"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_one_line(model, options, message):
    with pytest.raises(ValueError, match=message) as error:
        extract_features(model, Photographs(), **({"size": 16} | options))
    assert "\n" not in str(error.value)


def test_registers_of_a_network_without_any():
    with pytest.raises(ValueError, match="tiny has no registers: leave registers out of the outputs"):
        extract_features(tiny_model(registers=0), Photographs(), size=16, outputs=("cls", "registers"))


def test_a_source_without_usable_images(model):
    class Bad(Photographs):
        def __getitem__(self, index):
            raise BadImage("empty")

    with pytest.raises(ValueError, match=r"none of the 3 images can be used, such as 0.jpg: empty"):
        extract_features(model, Bad(count=3), size=16)
    with pytest.raises(ValueError, match="no images"):
        extract_features(model, Photographs(count=0), size=16)


def test_eight_devices_equal_one(model, tmp_path):
    outputs = ("cls", "patches", "gem_patch")
    script = (
        "import numpy as np; from dino_jax import sharding; from dino_jax.extraction import extract_features;"
        "from tests.test_extraction import Photographs, tiny_model; import jax; assert len(jax.devices()) == 8;"
        f"out = [extract_features(tiny_model(), Photographs(), size=16, outputs={outputs}, batch_size=6,"
        "    mesh=sharding.make_mesh(fsdp=f)) for f in (1, 4)];"
        f"np.savez(r'{tmp_path}/out.npz', *[o[k] for o in out for k in (*{outputs}, 'ids')])"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=os.environ | cpus(8))
    one = extract_features(model, Photographs(), size=16, outputs=outputs, batch_size=6)
    with np.load(tmp_path / "out.npz") as out:
        for index, name in enumerate((*outputs, "ids") * 2):
            np.testing.assert_allclose(out[f"arr_{index}"], one[name], atol=1e-5)


def test_threads_do_not_change_anything(model):
    from dino_jax.data.reading import read_batches

    def read(threads):
        prepare = lambda image: centre_crop(image, size=8)  # noqa: E731
        return list(read_batches(Photographs(), range(21), batch_size=4, prepare=prepare, threads=threads))

    one, many = read(1), read(7)
    assert jax.tree.all(jax.tree.map(np.array_equal, one, many))


def test_the_example_runs():
    tried = doctest.testmod(extraction)
    assert tried.attempted > 0
    assert not tried.failed


def test_two_processes_return_what_one_does(model, tmp_path):
    script = """
import sys
import jax, numpy as np
jax.distributed.initialize("localhost:" + sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from dino_jax.extraction import extract_features
from tests.test_extraction import Photographs, tiny_model
source = Photographs()
for cache in ("fresh", "found"):
    out = extract_features(tiny_model(), source, size=16, outputs=("cls", "patches"), batch_size=4, cache=sys.argv[3])
    np.savez(f"{sys.argv[3]}/{cache}{sys.argv[2]}.npz", read=np.unique(source.read), **out)
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, port, str(number), str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        for number in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    one = extract_features(model, Photographs(), size=16, outputs=("cls", "patches"), batch_size=4)
    for file in ("fresh0", "fresh1", "found0", "found1"):
        with np.load(tmp_path / f"{file}.npz") as out:
            for name, expected in one.items():
                np.testing.assert_allclose(out[name], expected, atol=1e-5)
    with np.load(tmp_path / "fresh0.npz") as out:
        assert 3 not in out["read"], "the third and fourth image of every batch are the other process's"


def test_features_that_memory_cannot_hold_are_refused(model, monkeypatch):
    """Twice: in parts, and joined."""
    monkeypatch.setattr(host_memory, "of_process", lambda: 2 * 4 * 16 * 21 - 1)
    source = Photographs()
    with pytest.raises(ValueError, match=r"the features of 21 images take 0\.0 GiB of memory, but only"):
        extract_features(model, source, size=16)
    assert not source.read
    assert len(extract_features(model, Photographs(count=20), size=16)["cls"]) == 19
