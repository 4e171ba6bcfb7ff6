"""Every weight and option of an objective does what it says; the terms themselves are tested in `losses`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax import objective
from dino_jax.losses.dino import crop_weights, dino_loss
from dino_jax.losses.gram import gram_loss
from dino_jax.losses.koleo import koleo_loss
from dino_jax.losses.targets import sinkhorn_knopp, update_center
from tests import linear_networks
from tests.linear_networks import normal
from tests.test_nonfinite import hyper
from tests.test_step import objective as objective_with


def test_targets_by_their_options():
    scores = {"dino": normal(6, 8)}
    for iterations in (1, 4):
        options = objective_with(sinkhorn_iterations=iterations)
        found, _ = objective.probabilities(scores, {}, None, options, jnp.float32(0.1))
        expected = sinkhorn_knopp(scores["dino"], 0.1, iterations=iterations)
        np.testing.assert_allclose(found["dino"], expected, rtol=1e-5)
    options = objective_with(targets="centering", center_momentum=0.3)
    _, centers = objective.probabilities(scores, {}, {"dino": jnp.ones(8)}, options, jnp.float32(0.1))
    np.testing.assert_array_equal(centers["dino"], update_center(jnp.ones(8), scores["dino"], momentum=0.3))


@pytest.mark.parametrize("tokens", ["all", "masked", "unmasked"])
@pytest.mark.parametrize("negatives", ["none", "teacher", "both"])
def test_the_gram_term_by_its_options(tokens, negatives):
    student, teacher = normal(4, 9, 5), normal(4, 9, 5, seed=1)
    masks = np.random.default_rng(2).random((4, 9)) < 0.5
    subset = {"all": None, "masked": masks, "unmasked": ~masks}[tokens]
    for image_level in (True, False) if tokens == "all" else (False,):
        changes = {"gram": True, "gram_tokens": tokens, "gram_remove_negatives": negatives}
        options = objective_with(**changes, gram_image_level=image_level)
        found = objective.gram_terms(student, teacher, masks, options)["gram"]
        expected = {"image_level": image_level, "remove_negatives": negatives, "token_mask": subset}
        np.testing.assert_array_equal(found, gram_loss(student, teacher, **expected))


def test_crop_terms_by_their_options():
    networks, student = linear_networks.networks(), linear_networks.params(0)
    cls, local = normal(6, 2, 16), normal(6, 3, 16, seed=1)
    target = jax.nn.softmax(normal(6, 2, 64, seed=2))
    options = objective_with(student_temperature=0.2, koleo_topk=2, koleo_group_size=3)
    found = jax.jit(lambda *given: objective.crop_terms(networks, *given, options))(student, cls, local, target)

    @jax.jit
    def expect(student, cls, local, target):
        logits = [networks.dino_logits(student, x) for x in (cls, local)]
        same = dino_loss(logits[0], target, student_temperature=0.2, ignore_diagonal=True)
        groups = [koleo_loss(cls[:, view], topk=2, group_size=3) for view in range(2)]
        terms = {"dino_global": same, "dino_local": dino_loss(logits[1], target, student_temperature=0.2)}
        return terms | {"koleo": sum(groups) / 2}, koleo_loss(cls[:, 0], topk=1, group_size=None)

    expected, other = expect(student, cls, local, target)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert abs(found["koleo"] - other) > 1e-3


def test_the_total_is_the_weighted_sum():
    """Of the terms as they are reported: pairs of crops weigh alike, and KoLeo counts once per global crop."""
    networks, start, batch = linear_networks.networks(), linear_networks.state(), linear_networks.batch()
    options = objective_with(dino=2.0, ibot=0.5, koleo=0.3, gram=True)
    scheduled = hyper(local_weight=0.7, gram_weight=3.0)

    @jax.jit
    def compute(start, batch):
        target, _, _ = objective.targets(networks, start, batch, options, jnp.float32(0.05))
        return objective.loss_terms(networks, start.student, None, batch, target, options, scheduled, rngs={})

    total, (terms, _, _) = compute(start, batch)
    for_global, for_local = crop_weights(global_crops=2, local_crops=3, ignore_diagonal=True)
    weights = {
        "dino_global": 2 * for_global,
        "dino_local": 2 * 0.7 * for_local,
        "ibot": 0.5,
        "koleo": 2 * 0.3,
        "gram": 3,
    }
    assert terms.keys() == weights.keys() | {"total"}
    np.testing.assert_allclose(total, sum(weights[name] * terms[name] for name in weights), rtol=1e-6)
    assert total == terms["total"]
