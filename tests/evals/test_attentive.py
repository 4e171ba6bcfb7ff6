import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dino_jax.evals import attentive

FAST = {"heads": 2, "epochs": 30, "batch_size": 32, "rates": (1e-5, 3e-3)}


def turns(rng, labels):
    """Two frames of one patch each, `(clips, 2, 1, 1, 12)`: first a then b for class 0, first b then a for class 1.

    Without the order of the frames both classes look the same.
    """
    kinds = np.repeat(np.eye(2), 6, axis=1)[np.stack([labels, 1 - labels], axis=1)]
    clips = 3 * kinds + 0.1 * rng.normal(size=(len(labels), 2, 12))
    return clips[:, :, None, None].astype(np.float32)


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    labels = np.arange(128) % 2
    features = turns(rng, labels)
    losses = []
    params = attentive.fit(features, labels, classes=2, advance=losses.append, **FAST)
    return rng, params, losses


def test_the_order_of_frames_is_learnt(trained):
    rng, params, losses = trained
    labels = np.arange(60) % 2
    found = attentive.predict(params, turns(rng, labels), heads=2)
    assert found.shape == (2, 60)
    assert np.mean(found[1] == labels) == 1
    assert len(losses) == 30 * 4
    assert losses[-1] < 0.1 < losses[0]


def test_features_that_know_nothing_score_chance(trained):
    rng, params, _ = trained
    labels = np.arange(200) % 2
    noise = rng.normal(size=(200, 2, 1, 1, 12)).astype(np.float32)
    assert np.mean(attentive.predict(params, noise, heads=2)[1] == labels) == pytest.approx(0.5, abs=0.12)


def test_probes_of_several_rates_start_alike_and_differ(trained):
    _, params, _ = trained
    assert params["head"].shape == (2, 12, 2)
    assert not np.allclose(params["head"][0], params["head"][1], atol=1e-3)


def test_patches_are_a_set_but_for_their_positions(trained):
    """Mirroring frames changes the answer only through the positions, which are there for each axis."""
    params = attentive.init(jax.random.key(0), dim=12, classes=3)
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 2, 12)).astype(np.float32)
    straight = attentive.logits(params, x, heads=2)
    assert straight.shape == (1, 3)
    for axis in (1, 2, 3):
        assert not np.allclose(straight, attentive.logits(params, np.flip(x, axis), heads=2), atol=1e-7)
    positions = attentive._positions((2, 3, 2), 12)
    assert len(np.unique(positions.reshape(12, -1).round(6), axis=0)) == 12


def test_wrong_input_is_refused():
    features, labels = np.zeros((4, 1, 2, 2, 12), np.float32), np.arange(4) % 2
    with pytest.raises(ValueError, match="must be"):
        attentive.fit(features[0], labels, classes=2, heads=2)
    with pytest.raises(ValueError, match="label 1 is out of range"):
        attentive.fit(features, labels, classes=1, heads=2)
    with pytest.raises(ValueError, match="all clips are of one class"):
        attentive.fit(features, 0 * labels, classes=2, heads=2)
    with pytest.raises(ValueError, match="5 heads do not divide"):
        attentive.fit(features, labels, classes=2, heads=5)


def test_the_loss_of_micro_batches_is_that_of_the_batch():
    labels = np.arange(10) % 2
    features = jnp.asarray(turns(np.random.default_rng(0), labels))
    params = attentive.init(jax.random.key(0), dim=12, classes=2)

    def whole(params):
        found = attentive.logits(params, features, heads=2)
        return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

    batch = attentive._micro_batches(features, jnp.asarray(labels), most=4)
    assert batch[0].shape == (3, 4, 2, 1, 1, 12)  # two clips fill up
    compute = jax.jit(lambda p: (attentive._loss_and_gradient(p, batch, heads=2), jax.value_and_grad(whole)(p)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), *compute(params))


def test_few_clips_at_a_time_are_classified_alike(trained, monkeypatch):
    rng, params, _ = trained
    features = turns(rng, np.arange(10) % 2)
    together = attentive.predict(params, features, heads=2)
    monkeypatch.setattr(attentive, "MOST_FORMED", 450)
    assert attentive._clips_at_once(features.shape, 2) == 4
    np.testing.assert_array_equal(attentive.predict(params, features, heads=2), together)


def test_clips_of_the_default_size_fit_into_memory(monkeypatch):
    """64 clips of 8 frames of 224 pixels, with 6 heads and 3 rates, have 11 GB of attention weights in each block."""
    grid, wide, heads = (8, 14, 14), 48, 6

    def arguments():
        params = jax.vmap(lambda key: attentive.init(key, dim=wide, classes=2))(jax.random.split(jax.random.key(0), 3))
        clips = jnp.zeros((64, *grid, wide), jnp.float16), jnp.zeros(64, int)
        return params, jax.vmap(attentive._adam().init)(params), *clips, jnp.zeros(3)

    shapes = jax.eval_shape(arguments)
    programs = [attentive._train_step.lower(*shapes, heads=heads)]

    predict = attentive._predict

    def lower(_, features, *, heads):
        programs.append(predict.lower(shapes[0], features, heads=heads))
        return np.zeros((3, len(features)))

    monkeypatch.setattr(attentive, "_predict", lower)
    attentive.predict({}, np.zeros(shapes[2].shape, np.float16), heads=heads)
    for program in programs[:2]:
        assert program.compile().memory_analysis().temp_size_in_bytes < 8 * 2**30
