"""DINO self-supervised vision models in JAX: `dino_jax.load` gives one with its weights."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_jax.pretrained import load

__all__ = ["load"]

# Where the names of `__all__` are; a command that only prints its help need not import JAX for them.
_HOMES = {"load": "dino_jax.pretrained"}


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` when it is first used."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'dino_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
