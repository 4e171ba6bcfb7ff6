"""Speed beside named alternatives, measured in turn in one run: what `python -m dino_jax.bench` offers."""
