import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.models.resize import resize_matrix, resize_patches
from tests.torch_weights import assert_close

resize = jax.jit(resize_patches, static_argnums=(1, 2), static_argnames=("antialias", "method"))
CASES = [(antialias, method) for antialias in (False, True) for method in ("bicubic", "bilinear")]


def test_by_hand():
    # Halving: centres fall between two taps. Keys at +-1/2, +-3/2 with a = -0.75: 0.59375 and -0.09375.
    matrix = resize_matrix(4, 2, antialias=False, method="bicubic")
    np.testing.assert_allclose(matrix, [[0.5, 0.59375, -0.09375, 0], [0, -0.09375, 0.59375, 0.5]], rtol=1e-6)
    matrix = resize_matrix(4, 2, antialias=False, method="bilinear")
    np.testing.assert_allclose(matrix, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], rtol=1e-6)
    # With antialiasing the triangle is twice as wide: 1/4, 3/4, 3/4, 1/4, cut at the border and renormalised.
    matrix = resize_matrix(4, 2, antialias=True, method="bilinear")
    np.testing.assert_allclose(matrix, [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]], rtol=1e-6)


@pytest.mark.parametrize(("antialias", "method"), CASES)
@pytest.mark.parametrize("sizes", [(9, 4), (4, 9), (5, 5), (1, 3), (3, 1), (64, 7)])
def test_rows_sum_to_one_and_mirror(sizes, antialias, method):
    matrix = resize_matrix(*sizes, antialias=antialias, method=method)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_antialiased_equals_jax():
    """`jax.image.resize` widens the same kernel, a = -0.5."""
    patches = np.random.default_rng(0).normal(size=(2, 12 * 10, 3)).astype(np.float32)
    expected = jax.image.resize(patches.reshape(2, 12, 10, 3), (2, 5, 7, 3), "cubic", antialias=True)
    out = resize(patches, (12, 10), (5, 7), antialias=True)
    np.testing.assert_allclose(out.reshape(2, 5, 7, 3), expected, atol=1e-5)


@pytest.mark.parametrize(("antialias", "method"), CASES)
def test_axes_are_not_swapped(antialias, method):
    """A map that depends on the row alone still does."""
    patches = jnp.repeat(jnp.arange(6.0), 4)[None, :, None]
    out = resize(patches, (6, 4), (3, 8), antialias=antialias, method=method).reshape(3, 8)
    np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1], (3, 8)), atol=1e-5)
    assert (np.diff(out[:, 0]) > 1).all()


def test_same_grid_is_untouched():
    patches = jnp.arange(12.0).reshape(1, 6, 2)
    assert (resize(patches, (2, 3), (2, 3), antialias=True) == patches).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="6 patches are not a grid"):
        resize_patches(jnp.ones((1, 6, 2)), (2, 2), (1, 1), antialias=False)
    with pytest.raises(ValueError, match="choose 'bicubic' or 'bilinear'"):
        resize_patches(jnp.ones((1, 4, 2)), (2, 2), (1, 1), antialias=False, method="nearest")


@pytest.mark.golden
@pytest.mark.parametrize(("antialias", "method"), CASES)
def test_golden(golden, antialias, method):
    file = golden("v3_gram_resize.npz")
    assert file.config["pairs"]
    for old, new in file.config["pairs"]:
        name = f"{old}to{new}"
        out = resize(file[f"in/{name}/teacher_patches"], (old, old), (new, new), antialias=antialias, method=method)
        # A source coordinate, up to `old`, is rounded before its fraction becomes a weight: 3.9e-6 was the most.
        assert_close(out, file[f"out/{name}/{method}/antialias_{antialias}"], relative=1.5e-5)
