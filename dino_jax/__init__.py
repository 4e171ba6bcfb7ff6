"""DINO self-supervised vision models in JAX."""
