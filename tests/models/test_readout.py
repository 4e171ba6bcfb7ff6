"""Tokens on the way through a vision transformer; numbers of the reference are in `test_vit` and `test_vit_learned`."""

import re

import jax
import numpy as np
import pytest

from dino_jax.models import build, intermediate_layers
from dino_jax.models.readout import after_blocks

WANTED = [4, 0, 2, 0]


@pytest.fixture(scope="module")
def small():
    """A network of five blocks, its parameters and two images."""
    model = build("dinov3_vits16", width=32, depth=5, heads=2)
    images = np.random.default_rng(0).standard_normal((2, 32, 48, 3), np.float32)
    params = model.init(jax.random.key(0), {"global": images})["params"]
    return model, jax.tree.map(lambda x: x + 0.1 * np.cos(np.arange(x.size).reshape(x.shape)), params), images


def test_blocks_are_those_of_the_whole_pass(small):
    """In any order, and twice if asked twice."""
    model, params, images = small

    @jax.jit
    def run(params):
        blocks = model.apply({"params": params}, {"global": images}, collect=True)["global"]["blocks"]
        return after_blocks(model, params, images, WANTED), [blocks[index] for index in WANTED]

    found, expected = run(params)
    assert found[0].shape == (2, 1 + 4 + 6, 32)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_only_the_wanted_blocks_run_and_are_kept(small):
    """The 7B's 40 outputs would not fit on a device."""
    model, params, images = small

    def program(wanted):
        return str(jax.make_jaxpr(lambda params: intermediate_layers(model, params, images, wanted))(params))

    assert "[5,2,11,32]" not in program([1, 3, -1])
    assert "[3,2,11,32]" in program([1, 3, -1])  # the first two, and a place for the others
    assert re.findall(r"length=(\d+)", program([1])) == ["2"]
