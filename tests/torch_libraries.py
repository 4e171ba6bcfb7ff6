"""Imports the PyTorch libraries that tests compare with; tests that need one which is not installed are skipped."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest


def library(name: str) -> Any:
    """Imports torch, timm or transformers; skips the test when it is not installed."""
    torch = pytest.importorskip("torch")
    if name != "torch":
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
        declare_torchvision_kernels(torch)
    return importlib.import_module(name)


def declare_torchvision_kernels(torch: Any) -> None:
    """Declares two operators of torchvision that it wants to find when it is imported.

    Where its compiled part is of another build than torch (for CUDA, say), it does not load, and the import fails for
    want of operators on boxes that no test here needs.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*.so")))
    except (OSError, StopIteration):
        declare_torchvision_kernels.kept = torch.library.Library("torchvision", "DEF")  # it goes when it is collected
        for name in ("nms", "qnms"):
            declare_torchvision_kernels.kept.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
