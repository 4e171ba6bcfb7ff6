"""The safetensors format, beside the library of that name."""

import json

import numpy as np
import pytest

from dino_jax.weights import safetensors
from dino_jax.weights.files import same_bits
from tests.weights.test_pth import ARRAYS


def test_what_is_written_comes_back_bit_for_bit(tmp_path):
    safetensors.write(tmp_path / "a.safetensors", ARRAYS)
    read = safetensors.read(tmp_path / "a.safetensors")
    assert list(read) == list(ARRAYS)
    assert all(same_bits(read[name], array) for name, array in ARRAYS.items())


def test_the_library_reads_what_is_written_and_is_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(x) for name, x in ARRAYS.items() if x.dtype != "bfloat16"}
    safetensors.write(tmp_path / "ours", arrays)
    library.save_file(arrays, tmp_path / "theirs")
    read, theirs = library.load_file(tmp_path / "ours"), safetensors.read(tmp_path / "theirs")
    for name, array in arrays.items():
        assert same_bits(read[name], array)
        assert same_bits(theirs[name], array)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_files_that_are_cut_off(tmp_path, share):
    safetensors.write(tmp_path / "a", ARRAYS)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut off|empty"):
        safetensors.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "does not fit its 4 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "beyond the end"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}, "beyond the end"),
        (
            {"dtype": "Q4", "shape": [2], "data_offsets": [0, 8]},
            "holds tensors of type Q4, which is not among F64, .*: save it with",
        ),
        ({"dtype": "F32", "shape": [2]}, "data_offsets"),
        ("nonsense", "not a safetensors file"),
    ],
)
def test_headers_that_lie(tmp_path, entry, problem):
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=problem):
        safetensors.read(tmp_path / "a")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    safetensors.write(tmp_path / "a", {"x": np.zeros(1)})
    with pytest.raises(ValueError, match="tensor y of type complex128"):
        safetensors.write(tmp_path / "a", {"y": np.zeros(1, complex)})
    assert list(safetensors.read(tmp_path / "a")) == ["x"]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
