"""Imports the PyTorch libraries that results are compared with: torch, transformers, timm."""

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any


def imported(library: str) -> Any:
    """Imports a library of the extra `reference`.

    Raises:
      ValueError: when it is not there, or cannot be imported.
    """
    try:
        if library != "torch":
            torchvision_kernels(importlib.import_module("torch"))
        return importlib.import_module(library)
    except Exception as error:  # libraries with compiled parts fail in many ways
        text = " ".join(str(error).split())[:120]
        raise ValueError(f"{library} cannot be imported ({text}): pip install -e '.[reference]'") from None


@cache
def torchvision_kernels(torch: Any) -> Any:
    """Declares two operators of torchvision that it wants to find when it is imported; returns what keeps them.

    The compiled part of a torchvision built for CUDA does not load beside a torch for CPUs, which pip installs without
    a word, and then timm and transformers fail for want of operators on boxes that nothing here needs.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    try:
        return torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*.so")))
    except (OSError, StopIteration):
        kept = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            kept.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return kept
