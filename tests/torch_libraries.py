"""Imports the PyTorch libraries that tests compare with; tests that need one which is not installed are skipped."""

import importlib.util
from typing import Any

import pytest

from dino_jax.weights.libraries import imported


def library(name: str) -> Any:
    """Imports torch, timm or transformers; skips the test when it is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return imported(name)
