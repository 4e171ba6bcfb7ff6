"""Imports torchvision, and timm which needs it, also where its compiled operations were built for another torch."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def import_or_skip(name: str) -> ModuleType:
    """Imports `name`, a module of torchvision or timm; skips the test where it is not installed."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is not None:
        declare_operations()
    return pytest.importorskip(name)


@functools.cache
def declare_operations() -> Any:
    """Declares the operations that torchvision expects while it is imported, if its library does not load."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library  # kept by the cache: its declarations die with it
    return None
