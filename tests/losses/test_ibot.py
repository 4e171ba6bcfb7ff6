from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.losses.ibot import ibot_loss
from tests.conftest import golden_names
from tests.torch_weights import assert_close


def value_and_gradient(student, teacher, weights, **options):
    return jax.jit(jax.value_and_grad(lambda x: ibot_loss(x, teacher, weights, **options)))(student)


def test_by_hand():
    # Two patches of weight 1/2 in the one masked image of two: (log 4 + log (4/3)) / 2 / 2.
    student = np.log(np.array([[1.0, 3.0], [1.0, 3.0]], np.float32))
    value, _ = value_and_gradient(student, np.eye(2), np.full(2, 0.5), images=2, student_temperature=1.0)
    np.testing.assert_allclose(value, (np.log(4) + np.log(4 / 3)) / 4, rtol=1e-6)


def test_against_numpy():
    rng = np.random.default_rng(0)
    student, weights = rng.normal(size=(2, 5, 6)).astype(np.float32), rng.uniform(0.1, 1, (2, 5)).astype(np.float32)
    teacher = rng.dirichlet(np.ones(6), size=(2, 5)).astype(np.float32)
    scores = student.astype(np.float64) / 0.3
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    value, _ = value_and_gradient(student, teacher, weights, images=7, student_temperature=0.3)
    np.testing.assert_allclose(value, -(weights[..., None] * teacher * log_probs).sum() / 7, rtol=1e-6)


@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_padding_contributes_nothing(garbage):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(6, 4)).astype(np.float32), rng.dirichlet(np.ones(4), 6).astype(np.float32)
    weights = np.array([0.5, 0.5, 1, 0, 0, 0], np.float32)
    expected, _ = value_and_gradient(student[:3], teacher[:3], weights[:3], images=4, student_temperature=0.1)
    student[3:], teacher[4:] = garbage, garbage
    value, gradient = value_and_gradient(student, teacher, weights, images=4, student_temperature=0.1)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.abs(gradient[:3]).max() > 0
    assert (np.asarray(gradient[3:]) == 0).all()


def test_teacher_gets_no_gradient():
    loss = partial(ibot_loss, images=2, student_temperature=0.1)
    gradient = jax.grad(loss, argnums=1)(jnp.ones((3, 4)), jnp.full((3, 4), 0.25), jnp.ones(3))
    assert (np.asarray(gradient) == 0).all()


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v[23]_ibot.npz"))
def test_golden(golden, name):
    file = golden(name)
    images, temperature = file.config["B2"], file.config["student_temp"]
    student, teacher, weights = file["in/student_logits"], file["out/sinkhorn"], file["in/masks_weight"]
    value, gradient = value_and_gradient(student, teacher, weights, images=images, student_temperature=temperature)
    assert_close(value, file["out/forward_masked"], relative=1e-6)
    assert_close(value, file["out/forward_masked_no_weight_given"], relative=1e-6)
    assert_close(value, file["out/forward_masked_padded"], relative=1e-6)
    assert_close(gradient, file["grad_input/forward_masked"], relative=2e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_names("v[23]_ibot.npz"))
def test_dense_golden(golden, name):
    """All patches with their mask as weights give the same loss as the masked ones alone."""
    file = golden(name)
    masks = file["in/masks"]
    weights = masks / np.maximum(masks.sum(axis=1, keepdims=True), 1)
    value, gradient = value_and_gradient(
        file["in/dense_student"],
        file["in/dense_teacher_probs"],
        weights.astype(np.float32),
        images=file.config["B2"],
        student_temperature=file.config["student_temp"],
    )
    assert_close(value, file["out/dense_forward"], relative=1e-6)
    assert_close(gradient, file["grad_input/dense"], relative=2e-6)
