"""PyTorch files: read as torch reads them, written so that torch reads them, and nothing in them is run."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest

from dino_jax.weights import pth, pth_writer
from dino_jax.weights.files import same_bits
from tests.torch_libraries import library

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([1.5, -0.0, 65504], np.float16),
    "brain": np.array([1.5, 3e38], "bfloat16"),
    "double": np.array([[np.pi]]),
    "count": np.array(7),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "view": np.arange(12, dtype=np.int32).reshape(3, 4).T[1:],
}


def test_what_is_written_comes_back_bit_for_bit(tmp_path):
    content = {"teacher": ARRAYS, "again": {"deeper": {"x": ARRAYS["matrix"]}}}
    pth_writer.write(tmp_path / "a.pth", content)
    read = pth.read(tmp_path / "a.pth")
    assert list(read["teacher"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert same_bits(read["teacher"][name], array), name
    assert same_bits(read["again"]["deeper"]["x"], ARRAYS["matrix"])


def test_the_same_weights_give_the_same_bytes(tmp_path):
    for name in "ab":
        pth_writer.write(tmp_path / name, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_is_written_as_weights_only(tmp_path, mapped):
    torch = library("torch")
    pth_writer.write(tmp_path / "a.pth", {"teacher": ARRAYS})
    read = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)["teacher"]
    for name, array in ARRAYS.items():
        assert read[name].shape == array.shape
        assert np.array_equal(read[name].to(torch.float64).numpy(), array.astype(np.float64)), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_reads_what_torch_writes(tmp_path, zipped):
    torch = library("torch")
    base = torch.arange(35.0).reshape(5, 7)
    tensors = {
        "plain": base,
        "transposed": base.t(),
        "window": base[1:4, 2::2],
        "half": base.half(),
        "brain": base.bfloat16(),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(base + 1),
        "expanded": torch.arange(3.0).expand(5, 3),
        "named": base + 2,
        "named parameter": torch.nn.Parameter(base + 3),
    }
    tensors["named"].origin = tensors["named parameter"].origin = "here"
    # A full checkpoint of DINOv1 holds its command line, and the optimizer's state by number.
    full = {
        "teacher": tensors,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, out="x", dtypes=[torch.int16, torch.float8_e5m2]),
        "optimizer": {"state": {0: {"step": 1, "exp_avg": base}}, "param_groups": [{"lr": np.float64(2)}]},
    }
    torch.save(full, tmp_path / "full.pth", _use_new_zipfile_serialization=zipped)
    read = pth.read(tmp_path / "full.pth")
    assert read["epoch"] == 3
    for name, tensor in tensors.items():
        there = tensor.detach().to(torch.float64).numpy()
        assert read["teacher"][name].shape == there.shape
        assert np.array_equal(read["teacher"][name].astype(np.float64), there), name
    assert read["teacher"]["brain"].dtype == "bfloat16"


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def zipped_pickle(path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


def test_code_is_refused_by_name_and_not_run(tmp_path):
    zipped_pickle(tmp_path / "evil.pth", pickle.dumps({"x": Hostile(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=r"evil\.pth asks to run '(posix|nt)\.system' when it is loaded: refused"):
        pth.read(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "builtins __import__", "torch load", "numpy.core.numeric load"]
)
def test_only_listed_names_are_looked_up(tmp_path, name):
    module, attribute = name.split()
    zipped_pickle(tmp_path / "x.pth", f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(ValueError, match=f"{module}.{attribute}"):
        pth.read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch ComplexFloatStorage", "holds complex tensors: save it with tensors of float32"),
        ("torch._utils _rebuild_sparse_tensor", "holds sparse tensors"),
        ("torch._utils _rebuild_qtensor", "holds quantised tensors"),
        ("torch._utils _rebuild_tensor_v3", "holds tensors of a type unknown here, such as float8"),
        (
            "torch.distributed._shard.sharded_tensor.api ShardedTensor",
            r"is one shard of a distributed run \(ShardedTensor\): give a file of the whole network",
        ),
    ],
)
def test_tensors_that_cannot_be_read_are_named(tmp_path, name, message):
    zipped_pickle(tmp_path / "x.pth", "c{}\n{}\n.".format(*name.split()).encode())
    with pytest.raises(ValueError, match=rf"x\.pth {message}"):
        pth.read(tmp_path / "x.pth")


def test_few_bytes_do_not_become_many(tmp_path, monkeypatch):
    pth_writer.write(tmp_path / "a.pth", {"x": np.zeros(1000, np.float32)})
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"b\.pth is compressed: save it again with torch\.save"):
        pth.read(tmp_path / "b.pth")
    monkeypatch.setattr(pth, "LONGEST_PICKLE", 10)
    with pytest.raises(ValueError, match=r"its data\.pkl is longer than 10 bytes"):
        pth.read(tmp_path / "a.pth")


def test_a_number_of_a_part_takes_no_memory(tmp_path):
    """Python's own unpickler makes room for 2**31 parts: 16 bytes each."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02Nr\xff\xff\xff\x7f.")
        archive.writestr("x/byteorder", b"little")
    with pytest.raises(ValueError, match="its pickle numbers part 2147483647 of 2"):
        pth.read(tmp_path / "x.pth")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_files_that_are_cut_off(tmp_path, share):
    pth_writer.write(tmp_path / "a.pth", ARRAYS)
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"a\.pth is (cut off|empty)") as error:
        pth.read(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_other_files(tmp_path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth is not a PyTorch file"):
        pth.read(tmp_path / "page.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"holds no data\.pkl"):
        pth.read(tmp_path / "other.pth")


def test_tensors_that_reach_beyond_their_storage():
    storage = np.zeros(6, np.float32)
    assert pth.rebuild_tensor(storage, 1, (2, 2), (2, 1)).shape == (2, 2)
    for offset, size, stride in ((3, (2, 2), (2, 1)), (0, (7,), (1,)), (0, (9, 9), (1, 1)), (0, (2,), (-1,))):
        with pytest.raises(ValueError, match=r"beyond its storage|impossible shape"):
            pth.rebuild_tensor(storage, offset, size, stride)
    assert pth.rebuild_tensor(storage, 5, (9, 9), (0, 0)).shape == (9, 9)
    with pytest.raises(ValueError, match="beyond its storage"):
        pth.rebuild_tensor(storage, 5, (2**13, 2**13), (0, 0))


def test_a_type_that_torch_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"tensor a\.b of type uint32 cannot be stored for PyTorch"):
        pth_writer.write(tmp_path / "a.pth", {"a": {"b": np.zeros(1, np.uint32)}})
    assert not list(tmp_path.iterdir())
