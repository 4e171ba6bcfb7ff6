from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.losses import targets
from dino_jax.losses.dino import crop_weights, dino_loss
from tests.conftest import golden_runs
from tests.torch_weights import assert_close

TEMPERATURE = 0.1
loss = jax.jit(partial(dino_loss, student_temperature=TEMPERATURE), static_argnames="ignore_diagonal")


def inputs(batch=3, student_views=4, teacher_views=2, prototypes=7):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(prototypes), size=(batch, teacher_views)).astype(np.float32)
    return rng.normal(size=(batch, student_views, prototypes)).astype(np.float32), probs


def test_by_hand():
    # A student with probabilities (1/4, 3/4) against certain teachers: -log(1/4) and -log(3/4).
    student = TEMPERATURE * np.log(np.array([[[1.0, 3.0]]], np.float32))
    teacher = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(loss(student, teacher), (np.log(4) + np.log(4 / 3)) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss(student, teacher, ignore_diagonal=True), np.log(4 / 3), rtol=1e-6)


@pytest.mark.parametrize("ignore_diagonal", [False, True])
def test_against_loops(ignore_diagonal):
    student, teacher = inputs()
    terms = []
    for sample in range(3):
        for s in range(4):
            for t in range(2):
                if not (ignore_diagonal and s == t):
                    scores = student[sample, s].astype(np.float64) / TEMPERATURE
                    log_probs = scores - np.log(np.exp(scores).sum())
                    terms.append(-(teacher[sample, t] * log_probs).sum())
    value = loss(student, teacher, ignore_diagonal=ignore_diagonal)
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-6)


def test_gradient_reaches_only_the_student():
    student, teacher = inputs()
    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(jnp.array(student), jnp.array(teacher))
    assert np.abs(to_student).max() > 0
    assert (np.asarray(to_teacher) == 0).all()
    np.testing.assert_allclose(to_student.sum(axis=-1), 0, atol=1e-6)


def test_no_pairs_left():
    with pytest.raises(ValueError, match="leave no pair"):
        loss(jnp.zeros((2, 1, 3)), jnp.zeros((2, 1, 3)), ignore_diagonal=True)
    with pytest.raises(ValueError, match="add crops"):
        crop_weights(global_crops=1, local_crops=0, ignore_diagonal=True)


def test_crop_weights():
    assert crop_weights(global_crops=2, local_crops=8, ignore_diagonal=True) == (2 / 18, 16 / 18)
    assert crop_weights(global_crops=2, local_crops=8, ignore_diagonal=False) == (4 / 20, 16 / 20)
    assert crop_weights(global_crops=2, local_crops=0, ignore_diagonal=True) == (1.0, 0.0)


def test_weighted_terms_are_the_mean_over_all_pairs():
    student, teacher = inputs()
    weights = crop_weights(global_crops=2, local_crops=2, ignore_diagonal=True)
    terms = loss(student[:, :2], teacher, ignore_diagonal=True), loss(student[:, 2:], teacher)
    together = loss(student, teacher, ignore_diagonal=True)
    np.testing.assert_allclose(np.dot(weights, terms), together, rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("ignore_diagonal", [False, True])
@pytest.mark.parametrize("crops", ["global", "local"])
def test_golden(golden, crops, ignore_diagonal):
    file = golden("v3_dinoloss.npz")
    student = file[f"in/student_{crops}_logits"].swapaxes(0, 1)
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda x: dino_loss(
                x,
                file["out/teacher_probs"].swapaxes(0, 1),
                student_temperature=file.config["student_temp"],
                ignore_diagonal=ignore_diagonal,
            )
        )
    )(student)
    name = f"{crops}/ignore_diagonal_{ignore_diagonal}"
    assert_close(value, file[f"out/{name}/loss"], relative=1e-6)
    assert_close(gradient.swapaxes(0, 1), file[f"grad_input/{name}/student"], relative=2e-6)


@pytest.mark.golden
def test_v1_golden(golden):
    """DINO's first form: all crops in one term, and the center updated after its use."""
    file = golden("v1_dinoloss.npz")
    batch, center = file.config["B"], file["center/before_0"][0]
    same = {"student_temperature": file.config["student_temp"], "ignore_diagonal": True}
    calls = sum(name.endswith("/epoch") for name in file)
    assert calls
    for i in range(calls):
        student = file[f"in/{i}/student"].reshape(-1, batch, file.config["out_dim"]).swapaxes(0, 1)
        teacher = file[f"in/{i}/teacher"].reshape(2, batch, -1).swapaxes(0, 1)
        temperature = file["teacher_temp_schedule_per_epoch"][int(file[f"in/{i}/epoch"])]
        probs = targets.softmax_center(teacher, center, temperature)
        value, gradient = jax.jit(jax.value_and_grad(lambda x, p=probs: dino_loss(x, p, **same)))(student)
        assert_close(value, file[f"out/{i}/loss"], relative=1e-6)
        assert_close(
            gradient.swapaxes(0, 1).reshape(-1, student.shape[-1]), file[f"grad_input/{i}/student"], relative=2e-6
        )
        center = targets.update_center(center, teacher, momentum=file.config["center_momentum"])
        assert_close(center, file[f"center/after_{i}"][0], relative=1e-6)


@pytest.mark.golden
def test_v2_golden(golden):
    """DINOv2 sums over the pairs of local crops, and takes both global crops as one batch of pairs."""
    file = golden("v2_dinoloss.npz")
    samples, prototypes, locals_ = (file.config[name] for name in ("B", "K", "n_local"))
    probs, options = file["out/teacher_probs"], {"student_temperature": file.config["student_temp"]}
    value_and_gradient = jax.jit(jax.value_and_grad(lambda x, p: dino_loss(x, p, **options)))
    student = file["in/student_local_logits"].reshape(locals_, samples, prototypes).swapaxes(0, 1)
    value, gradient = value_and_gradient(student, probs.reshape(2, samples, prototypes).swapaxes(0, 1))
    pairs = 2 * locals_
    assert_close(pairs * value, file["out/local_loss_sum_over_pairs"], relative=1e-6)
    gradient = pairs * gradient.swapaxes(0, 1).reshape(-1, prototypes)
    assert_close(gradient, file["grad_input/local"], relative=2e-6)
    value, gradient = value_and_gradient(file["in/student_global_logits"][:, None], probs[:, None])
    assert_close(value, file["out/global_loss"], relative=1e-6)
    assert_close(gradient[:, 0], file["grad_input/global"], relative=2e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_runs("v3_train_*.npz"))
def test_weights_reproduce_the_total_loss(golden, name):
    file = golden(name)
    metrics, config = file.under("metrics/"), file.config
    to_global, to_local = crop_weights(
        global_crops=2,
        local_crops=config["crops"]["local_crops_number"],
        ignore_diagonal=config["dino"]["global_ignore_diagonal"],
    )
    dino = config["dino"]["loss_weight"]
    total = (
        dino * to_global * metrics["dino_global_crops_loss"]
        + dino * to_local * metrics["dino_local_loss_weight"] * metrics["dino_local_crops_loss"]
        + 2 * config["dino"]["koleo_loss_weight"] * metrics["koleo_loss"]
        + config["ibot"]["loss_weight"] * metrics["ibot_loss"]
        + (metrics["gram_loss_weight"] * metrics["gram_loss"] if config["gram"]["use_loss"] else 0)
    )
    np.testing.assert_allclose(total, metrics["total_loss"], rtol=2e-6)
