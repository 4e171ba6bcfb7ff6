"""Reads a pickle that may hold only plain containers, numbers, strings and NumPy arrays."""

import io
import pickle
from typing import Any

ALLOWED = {
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    # How Python 2 strings and the bytes of protocol 2 are written: as the second where there are none.
    ("_codecs", "encode"),
    *((module, "bytes") for module in ("__builtin__", "builtins")),
}


def read_pickle(content: bytes, *, name: str) -> Any:
    """Decodes a pickle without running any code that it names.

    Args:
      name: of the file, for the error.

    Raises:
      ValueError: damaged, or with anything but the kinds above.
    """
    try:
        return _Reader(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly every built-in exception
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is not a pickle of plain containers and arrays ({text}): download it again") from None


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
