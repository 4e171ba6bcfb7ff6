import functools

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


def batch_of_turns():
    """Returns 32 clips and their labels, of the shapes for which `trained` compiles."""
    labels = np.arange(32) % 2
    return jnp.asarray(turns(np.random.default_rng(0), labels)), jnp.asarray(labels)


@jax.jit
@jax.value_and_grad
def loss_and_gradient(params, features, labels):
    found = attentive.logits(params, features, heads=2)
    return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()


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


def test_features_that_know_nothing_are_learnt_by_heart_and_score_chance():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(328, 2, 1, 1, 12)).astype(np.float32)
    labels = rng.integers(0, 2, 328)
    params = attentive.fit(noise[:128], labels[:128], classes=2, **FAST)
    right = attentive.predict(params, noise, heads=2)[1] == labels
    assert np.mean(right[:128]) > 0.65
    assert np.mean(right[128:]) == pytest.approx(0.5, abs=0.12)  # more than three deviations of 200 coins


def drawn(seed=0):
    """Returns parameters none of which is 0 or 1."""
    rng = np.random.default_rng(seed)
    params = attentive.init(jax.random.key(seed), dim=12, classes=2)
    return jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), params)


def test_a_block_is_that_of_torch():
    torch = pytest.importorskip("torch")
    block, x = drawn()["pool"], np.random.default_rng(1).normal(size=(3, 5, 12)).astype(np.float32)
    gelu = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    layer = torch.nn.TransformerEncoderLayer(12, 2, 48, dropout=0, activation=gelu, norm_first=True, batch_first=True)
    weights = {
        "self_attn.in_proj_weight": np.concatenate([block["q"].T, block["kv"].T]),
        "self_attn.out_proj.weight": block["out"].T,
        "linear1.weight": block["up"].T,
        "linear1.bias": block["up_bias"],
        "linear2.weight": block["down"].T,
        "linear2.bias": block["down_bias"],
        "norm1.weight": block["norms"][0],
        "norm2.weight": block["norms"][1],
    }
    zeros = {name: torch.zeros_like(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(zeros | {name: torch.tensor(value) for name, value in weights.items()})
    found = jax.jit(lambda x: attentive._block(block, x, attentive._norm(x) * block["norms"][0], 2))(x)
    np.testing.assert_allclose(found, layer(torch.tensor(x)).detach(), atol=1e-5)


def test_steps_are_those_of_adamw():
    rates = np.array([1e-3, 1e-2], np.float32)  # two steps of decay are 6e-6 and 6e-5
    features, labels = batch_of_turns()
    params = jax.tree.map(lambda x: jnp.stack([x, x]), drawn())
    state = jax.jit(jax.vmap(attentive._adam().init))(params)
    for _ in range(2):
        params, state, _ = attentive._train_step(params, state, features, labels, rates, heads=2)

    def decayed(params):
        kernels = ("q", "kv", "out", "up", "down", "query", "head")
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in kernels, params)

    @jax.jit
    def step(rate, gradient, state, params):
        adamw = optax.adamw(rate, weight_decay=attentive.WEIGHT_DECAY, mask=decayed)
        updates, state = adamw.update(gradient, adamw.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    for index, rate in enumerate(rates):
        expected, state = drawn(), None
        for _ in range(2):
            _, gradient = loss_and_gradient(expected, features, labels)
            expected, state = step(rate, gradient, state, expected)
        jax.tree.map(lambda x, y, i=index: np.testing.assert_allclose(x[i], y, atol=1e-6), params, expected)


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
    features, labels = batch_of_turns()
    params = attentive.init(jax.random.key(0), dim=12, classes=2)
    batch = attentive._micro_batches(features, labels, most=14)
    assert batch[0].shape == (3, 11, 2, 1, 1, 12)  # one clip fills up
    found = jax.jit(lambda p: attentive._loss_and_gradient(p, batch, heads=2))(params)
    expected = loss_and_gradient(params, features, labels)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)


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
