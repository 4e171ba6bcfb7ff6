"""The distortion of each kind of crop: its published strengths, its random numbers, and what is left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.data import photometry
from dino_jax.data.augment import augment

STATISTICS = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.25, 0.3)}


def crops(views, side):
    return np.random.default_rng(side).integers(0, 256, (2, views, side, side, 3), np.uint8)


BATCH = {
    "global_crops": crops(2, 8),
    "local_crops": crops(3, 6),
    "gram_crops": crops(2, 16),
    "labels": np.arange(2, dtype=np.int32),
    "mask_weights": np.full(4, 0.3, np.float32),
}


def augmented(number, dtype=jnp.float32):
    return augment(jax.random.key(0), number, BATCH, **STATISTICS, dtype=dtype)


@pytest.fixture
def calls(monkeypatch):
    """Puts noise in the place of distortion; returns what it is called with, by the side of the crops."""
    calls = {}

    def noise(key, crops, **options):
        calls[crops.shape[2]] = options
        return jax.random.uniform(key, crops.shape)

    monkeypatch.setattr(photometry, "distort", noise)
    return calls


def test_each_kind_of_crop_is_distorted_as_published(calls):
    augmented(0)
    shared = STATISTICS | {
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "jitter_probability": 0.8,
        "gray_probability": 0.2,
    }
    assert calls == {
        8: shared | {"blur": (1.0, 0.1), "solarize": (0.0, 0.2)},
        6: shared | {"blur": (0.5, 0.5, 0.5), "solarize": (0.0, 0.0, 0.0)},
    }


def test_distortion_depends_on_the_number_of_the_batch(calls):
    first, again, next_one = (augmented(number) for number in (7, 7, 8))
    for name in ("global_crops", "local_crops"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != next_one[name]).mean() > 0.9


def test_gram_crops_are_only_normalised_and_crops_alone_take_the_type(calls):
    out = augmented(0, jnp.bfloat16)
    normalised = (BATCH["gram_crops"] / 255 - STATISTICS["mean"]) / STATISTICS["std"]
    np.testing.assert_allclose(out["gram_crops"].astype(np.float32), normalised, rtol=2**-8)
    assert {name: out[name].dtype for name in BATCH if name.endswith("crops")} == dict.fromkeys(
        ("global_crops", "local_crops", "gram_crops"), jnp.bfloat16
    )
    for name in ("labels", "mask_weights"):
        assert out[name].dtype == BATCH[name].dtype
        np.testing.assert_array_equal(out[name], BATCH[name])


def test_no_two_choices_share_a_random_key():
    function = functools.partial(augment, **STATISTICS, dtype=jnp.float32)
    with jax.debug_key_reuse(True):
        out = jax.eval_shape(jax.jit(function), jax.random.key(0), 0, BATCH)
    assert {name: x.shape for name, x in out.items()} == {name: x.shape for name, x in BATCH.items()}
