"""Checks a whole configuration once, before any device is touched."""

from dino_jax.validate.run import validate

__all__ = ["validate"]
