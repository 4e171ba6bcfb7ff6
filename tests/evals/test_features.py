import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.evals.features import extract


def batches(count=3, size=4):
    for index in range(count):
        images = np.arange(size, dtype=np.float32).reshape(size, 1, 1, 1) + size * index
        valid = np.arange(size) < (size if index + 1 < count else 1)
        yield {"images": images, "valid": valid, "labels": images[:, 0, 0, 0].astype(np.int32)}


def test_padding_is_left_out_and_order_kept():
    apply = jax.jit(lambda images: {"cls": 2 * images[:, 0, 0], "patches": images.astype(jnp.bfloat16)})
    out = extract(apply, batches())
    np.testing.assert_array_equal(out["labels"], np.arange(9))
    np.testing.assert_array_equal(out["cls"][:, 0], 2 * np.arange(9))
    assert out["patches"].shape == (9, 1, 1, 1)
    assert out["patches"].dtype == np.float32
    assert out["labels"].dtype == np.int32


def test_batches_without_a_mask_are_whole():
    out = extract(lambda images: {"cls": jnp.asarray(images)}, [{"images": np.ones((2, 1, 1, 1))}] * 2)
    assert out["cls"].shape == (4, 1, 1, 1)


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="no batch"):
        extract(lambda images: {"cls": images}, [])
