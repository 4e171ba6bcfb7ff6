import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from dino_jax.data.containers_pickle import read_pickle
from dino_jax.data.copies import open_copies
from dino_jax.data.landmarks import open_landmarks
from tests.data.images import encode, photograph

NAMES = ["all_souls_1", "all_souls_2", "magdalen_1", "magdalen_2"]
TRUTH = {
    "imlist": NAMES,
    "qimlist": ["all_souls_1", "magdalen_1"],
    "gnd": [
        {"bbx": [2.4, 3.0, 20.0, 18.0], "easy": [0], "hard": [1], "junk": []},
        {"bbx": [0, 0, 10, 10], "easy": np.array([2, 3]), "hard": [], "junk": np.array([0])},
    ],
}


def write(folder, truth=TRUTH):
    (folder / "jpg").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / "jpg" / f"{name}.jpg").write_bytes(encode(photograph(24, 32, number), "JPEG"))
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, protocol=2))
    return folder


def test_landmarks_are_read(tmp_path):
    data = open_landmarks(str(write(tmp_path / "oxford")))
    assert (len(data.queries), len(data.database), len(data.truth)) == (2, 4, 2)
    assert data.queries[0]["image"].shape == (15, 18, 3)
    assert data.database[3]["image"].shape == (24, 32, 3)
    assert data.queries.name(0) == "jpg/all_souls_1.jpg[2, 3, 20, 18]"
    assert data.truth[1].easy.tolist() == [2, 3]
    assert data.truth[1].junk.tolist() == [0]
    assert data.truth[0].junk.tolist() == []


def test_landmarks_in_an_archive(tmp_path):
    with tarfile.open(tmp_path / "oxford.tar", "w") as archive:
        archive.add(write(tmp_path / "oxford"), "oxford")
    assert len(open_landmarks(str(tmp_path / "oxford.tar")).database) == 4


def test_wrong_landmarks_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_landmarks(str(tmp_path / "nowhere"))
    folder = write(tmp_path / "a", {"imlist": NAMES})
    with pytest.raises(ValueError, match=r"not a revisited ground truth \(KeyError"):
        open_landmarks(str(folder))
    folder = write(tmp_path / "b", TRUTH | {"gnd": TRUTH["gnd"][:1]})
    with pytest.raises(ValueError, match="2 queries and the truth of 1"):
        open_landmarks(str(folder))
    folder = write(tmp_path / "c", TRUTH | {"imlist": NAMES[:3]})
    with pytest.raises(ValueError, match="names image 3 of a database of 3"):
        open_landmarks(str(folder))
    wrong = [TRUTH["gnd"][0] | {"easy": [-1]}, TRUTH["gnd"][1]]
    with pytest.raises(ValueError, match="names image -1 of a database of 4"):
        open_landmarks(str(write(tmp_path / "negative", TRUTH | {"gnd": wrong})))
    folder = write(tmp_path / "d", TRUTH | {"imlist": [*NAMES[:3], "lost"]})
    with pytest.raises(ValueError, match=r"lacks 1 images .* lost\.jpg"):
        open_landmarks(str(folder))
    (folder / "gnd_roxford5k.pkl").unlink()
    with pytest.raises(ValueError, match="holds no file gnd_"):
        open_landmarks(str(folder))


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"it names posix\.mkdir"):
        read_pickle(pickle.dumps({"gnd": Harmful()}), name="gnd.pkl")
    assert not (tmp_path / "harmed").exists()
    for protocol in range(2, 6):
        content = {"a": np.arange(3), "b": [1.5, "x", np.float64(2.5)], "c": (None, b"\xff", b"")}
        found = read_pickle(pickle.dumps(content, protocol=protocol), name="x")
        assert found["b"] == content["b"]
        np.testing.assert_array_equal(found["a"], content["a"])
        assert read_pickle(pickle.dumps(np.array([], int), protocol=protocol), name="x").size == 0
    with pytest.raises(ValueError, match=r"gnd\.pkl is not a pickle"):
        read_pickle(pickle.dumps([1, 2])[:-3], name="gnd.pkl")


def write_copies(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(photograph(20, 20, len(name))))
    return folder


def test_copydays_is_read(tmp_path):
    names = ["original/200000.png", "original/200100.png", *(f"strong/{n}.png" for n in (200001, 200102, 200103))]
    folder = write_copies(tmp_path / "copydays", [*names, "crops/50/200100.png"])
    data = open_copies(str(folder))
    assert (len(data.photographs), len(data.copies)) == (2, 3)
    assert data.original.tolist() == [0, 1, 1]
    assert data.photographs[1]["image"].shape == (20, 20, 3)
    assert open_copies(str(folder), "crops/50").original.tolist() == [1]
    with pytest.raises(ValueError, match="has no folder jpeg/75/"):
        open_copies(str(folder), "jpeg/75")
    write_copies(folder, ["strong/200201.png"])
    with pytest.raises(ValueError, match=r"strong/200201\.png has no photograph in original/"):
        open_copies(str(folder))


def test_archives_read_from_memory_are_the_same(tmp_path):
    folder = write_copies(tmp_path / "copydays", ["original/200000.png", "strong/200001.png"])
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        archive.add(folder, "copydays")
    (tmp_path / "copydays.tar.gz").write_bytes(memory.getvalue())
    assert open_copies(str(tmp_path / "copydays.tar.gz")).copies.name(0) == "copydays/strong/200001.png"
