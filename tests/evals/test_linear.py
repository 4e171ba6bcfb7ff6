import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dino_jax.evals import linear


def planted(rng, labels, classes=4, dim=8, noise=0.1):
    return np.float32(np.eye(classes, dim)[labels] + noise * rng.normal(size=(len(labels), dim)))


def train(features, labels, *, rates, steps, classes=4, batch_size=256):
    probes = linear.init(
        jax.random.key(0), {n: x.shape[1] for n, x in features.items()}, rates=len(rates), classes=classes
    )
    for step in range(steps):
        now = linear.scheduled(rates, step=step, steps=steps, batch_size=batch_size)
        probes, losses = linear.train_step(probes, features, labels, np.ones(len(labels), np.float32), now)
    return probes.params, losses


def test_choices_join_the_last_blocks_and_the_mean_patch():
    cls = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    patch = -np.ones((2, 2))
    found = linear.choices(cls, patch)
    assert sorted(found) == ["cls_1", "cls_1+patch", "cls_3", "cls_3+patch"]
    np.testing.assert_array_equal(found["cls_1"], cls[:, -1])
    np.testing.assert_array_equal(found["cls_1+patch"], [[4, 5, -1, -1], [10, 11, -1, -1]])
    np.testing.assert_array_equal(found["cls_3"][0], np.arange(6))
    assert sorted(linear.choices(cls[:, -1], patch)) == ["cls_1", "cls_1+patch"]


def test_steps_are_those_of_independent_sgd():
    """All probes at once equal one optax.sgd after the other."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 20)
    features = {"a": planted(rng, labels), "b": planted(rng, labels, dim=5)}
    weights = (np.arange(20) < 17).astype(np.float32)
    rates = (0.1, 1.0)
    start = linear.init(jax.random.key(0), {"a": 8, "b": 5}, rates=2, classes=4)
    expected = {}
    for name, x in features.items():
        for index, rate in enumerate(rates):
            params = jax.tree.map(lambda leaf, i=index: leaf[i], start.params[name])
            optimizer = optax.sgd(rate, momentum=0.9)
            state = optimizer.init(params)
            for _ in range(3):

                def loss(params, x=x):
                    logits = x[:17] @ params["kernel"] + params["bias"]
                    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:17]).mean()

                updates, state = optimizer.update(jax.grad(loss)(params), state, params)
                params = optax.apply_updates(params, updates)
            expected[name, index] = params
    probes = start
    for _ in range(3):
        probes, losses = linear.train_step(probes, features, labels, weights, np.float32(rates))
    for (name, index), params in expected.items():
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(probes.params[name][leaf][index], params[leaf], atol=1e-6)
    assert losses["a"].shape == (2,)


def test_schedule_is_scaled_and_ends_at_zero():
    np.testing.assert_allclose(linear.scheduled((0.1,), step=0, steps=10, batch_size=512), [0.2])
    np.testing.assert_allclose(linear.scheduled((0.1,), step=5, steps=10, batch_size=256), [0.05], rtol=1e-6)
    np.testing.assert_allclose(linear.scheduled((0.1,), step=10, steps=10, batch_size=256), [0], atol=1e-9)


def test_planted_answers_and_the_choice_by_validation():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 256)
    features = {"blind": rng.normal(size=(256, 8)).astype(np.float32), "right": planted(rng, labels)}
    params, losses = train(features, labels, rates=(1e-6, 10.0), steps=60)
    test_labels = rng.integers(0, 4, 200)
    test = {"blind": rng.normal(size=(200, 8)).astype(np.float32), "right": planted(rng, test_labels)}
    blocks = [{name: x[start : start + 64] for name, x in test.items()} for start in range(0, 200, 64)]
    predictions = linear.predict(params, blocks)
    np.testing.assert_array_equal(predictions["blind"], linear.predict(params, [test])["blind"])
    scores = linear.accuracies(predictions, test_labels)
    assert scores["right"][1] == 1
    assert scores["blind"] == pytest.approx(0.25, abs=0.1)
    assert linear.best(scores) == ("right", 1)
    assert losses["right"][1] < 0.1


def test_best_takes_the_earlier_of_equals():
    assert linear.best({"a": np.array([0.1, 0.5]), "b": np.array([0.5, 0.5])}) == ("a", 1)


def test_a_diverged_probe_predicts_nothing():
    params = {"a": {"kernel": jnp.array([[[jnp.nan, 0.0]], [[1.0, 0.0]]]), "bias": jnp.zeros((2, 2))}}
    np.testing.assert_array_equal(linear.predict(params, [{"a": jnp.ones((3, 1))}])["a"], [[-1] * 3, [0] * 3])


def test_hold_out_takes_of_every_class_and_needs_two():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 2)
    kept, held = linear.hold_out(labels, share=0.1, seed=0)
    assert np.bincount(labels[held]).tolist() == [2, 1, 1]
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(32))
    assert not np.array_equal(linear.hold_out(labels, share=0.1, seed=1)[1], held)
    with pytest.raises(ValueError, match="class 3 has a single training sample"):
        linear.hold_out(np.append(labels, 3), share=0.1, seed=0)
    with pytest.raises(ValueError, match=r"share 1\.5 must lie between 0 and 1"):
        linear.hold_out(labels, share=1.5, seed=0)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        linear.init(jax.random.key(0), {"a": 3}, rates=1, classes=1)
