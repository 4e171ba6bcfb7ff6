"""The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes; read by memory mapping."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.weights.files import BFLOAT16, StateDict, Unsupported, bytes_of, raw, replacing

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # the format's own limit


def begins(path: Path) -> bool:
    """Says whether a file begins as one of this format does: a length, then an opening brace.

    Raises:
      ValueError: when it cannot be opened or is empty.
    """
    return bytes_of(path)[8:9].tobytes() == b"{"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Opens a safetensors file; the arrays are views of the mapped file.

    Raises:
      ValueError: when the file is cut off, is not of this format, or holds tensors of a type unknown here.
    """
    path = Path(path)
    data = bytes_of(path)
    length = int.from_bytes(data[:8].tobytes(), "little")
    try:
        if len(data) < 8 or length > min(LONGEST_HEADER, len(data) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        return {name: tensor(entry, data[8 + length :]) for name, entry in header.items()}
    except Unsupported as error:
        raise ValueError(f"{path} holds tensors of {error}: save it with tensors of float32") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = "its header is not JSON" if isinstance(error, json.JSONDecodeError) else f"{error}"
        raise ValueError(f"{path} is cut off or not a safetensors file ({problem}): fetch it again") from None


def tensor(entry: dict[str, Any], data: np.ndarray) -> np.ndarray:
    """Views the tensor that a header entry describes in the bytes after the header."""
    if entry["dtype"] not in DTYPES:
        raise Unsupported(f"type {entry['dtype']}, which is not among {', '.join(DTYPES)}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(data):
        raise ValueError(f"a tensor ends {end - len(data)} bytes beyond the end")
    if end - start != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError(f"shape {shape} does not fit its {end - start} bytes")
    return np.frombuffer(data, np.uint8, end - start, start).view(dtype).reshape(shape)


def write(path: str | Path, state: StateDict) -> None:
    """Writes arrays as a safetensors file that PyTorch libraries accept; an existing file is replaced.

    Raises:
      ValueError: for an element type that the format lacks, or when the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in state.items():
        if array.dtype not in CODES:
            raise ValueError(f"tensor {name} of type {array.dtype} cannot be stored as safetensors: convert it first")
        start, end = end, end + array.nbytes
        header[name] = {"dtype": CODES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in state.values():
            file.write(raw(array))
