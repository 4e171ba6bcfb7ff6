import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax import health
from dino_jax.evals import quality


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_entropy_of_known_distributions():
    probs = jnp.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(jax.jit(health.entropy)(probs), np.log([1, 4, 2]), rtol=1e-6, atol=1e-7)


def test_prototypes_by_hand():
    probs = jnp.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    values = jax.jit(health.prototypes)(probs, jnp.array([True, True, True, False]))
    # The valid samples use prototypes 0 and 2; their mean is (1/6, 1/6, 2/3, 0).
    assert values["used"] == 2
    assert values["used_share"] == pytest.approx(2 / 3)
    assert values["entropy"] == pytest.approx(np.log(2) / 3)
    assert values["entropy_share"] == pytest.approx(np.log(2) / 3 / np.log(4))
    mean = np.array([1 / 6, 1 / 6, 2 / 3])
    assert values["effective"] == pytest.approx(np.exp(-(mean * np.log(mean)).sum()), rel=1e-6)


def test_prototypes_ignore_what_padding_holds(rng):
    probs = jax.nn.softmax(rng.normal(size=(6, 16)) * 3)
    valid = jnp.array([1, 1, 1, 1, 0, 0])
    other = probs.at[4:].set(0.0)
    for name, value in health.prototypes(probs, valid).items():
        np.testing.assert_allclose(value, health.prototypes(other, valid)[name])
        np.testing.assert_allclose(value, health.prototypes(probs[:4])[name], rtol=1e-6)


def test_rankme_against_numpy_and_its_ends(rng):
    features = rng.normal(size=(40, 8)).astype(np.float32)
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = singular / singular.sum() + 1e-7
    expected = np.exp(-(share * np.log(share)).sum())
    assert jax.jit(quality.rankme)(features) == pytest.approx(expected, rel=1e-5)
    assert quality.rankme(jnp.eye(8)) == pytest.approx(8, rel=1e-4)
    assert quality.rankme(jnp.ones((40, 8))) == pytest.approx(1, rel=1e-3)
    assert quality.rankme(jnp.zeros((40, 8))) == pytest.approx(1, rel=1e-3)


def test_cosines_against_all_pairs(rng):
    cls, patches = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(5, 6, 7)).astype(np.float32) + 0.5
    similar = np.einsum("bnd,bmd->bnm", unit(patches), unit(patches))
    expected = similar[:, ~np.eye(6, dtype=bool)].mean()
    assert jax.jit(quality.mean_pairwise_cosine)(patches) == pytest.approx(expected, rel=1e-4)
    expected = np.einsum("bd,bnd->bn", unit(cls), unit(patches)).mean()
    assert jax.jit(quality.cls_patch_cosine)(cls, patches) == pytest.approx(expected, rel=1e-4)
    assert quality.mean_pairwise_cosine(jnp.ones((9, 3))) == pytest.approx(1, rel=1e-6)


def test_pairwise_cosine_needs_a_pair():
    with pytest.raises(ValueError, match="no pair"):
        quality.mean_pairwise_cosine(jnp.ones((1, 3)))


def test_parameter_distance_by_hand():
    teacher = {"a": jnp.array([3.0, 0.0]), "b": {"c": jnp.array([[4.0]])}}
    student = {"a": jnp.array([3.0, 0.5]), "b": {"c": jnp.array([[4.0]])}}
    assert health.parameter_distance(student, teacher) == pytest.approx(0.1)
    assert health.parameter_distance(teacher, teacher) == 0


def test_measure_gives_flat_finite_float32_names_under_jit(rng):
    cls, patches = rng.normal(size=(4, 8)), rng.normal(size=(4, 6, 8))
    probs = jax.nn.softmax(rng.normal(size=(8, 16)))
    tree = {"w": jnp.ones(3)}

    def measure(cls, patches, probs):
        return health.measure(
            cls=cls, patches=patches, student=tree, teacher=tree, dino_probs=probs, ibot_probs=probs, ibot_valid=None
        )

    values = jax.jit(measure)(cls.astype(jnp.bfloat16), patches.astype(jnp.bfloat16), probs)
    heads = {f"{head}_{name}" for head in ("dino", "ibot") for name in health.prototypes(probs)}
    alone = {"rankme", "cls_cosine", "patch_cosine", "cls_patch_cosine", "student_teacher_distance"}
    assert set(values) == {f"health/{name}" for name in heads | alone}
    assert all(value.dtype == jnp.float32 and np.isfinite(value) for value in values.values())


HEALTHY = {
    "loss/dino_local": 6.0,
    "loss/dino_global": 5.5,
    "health/dino_entropy": 6.0,
    "health/dino_entropy_share": 0.6,
    "health/dino_used_share": 0.6,
    "health/ibot_entropy_share": 0.7,
    "health/ibot_used_share": 0.3,
    "health/rankme": 40.0,
    "health/patch_cosine": 0.3,
    "throughput/data_wait_share": 0.05,
}


def run(records, **changes):
    """Returns records of a healthy run with `changes`, at steps 100, 200, ..."""
    return [{"step": 100 * (i + 1)} | HEALTHY | changes for i in range(records)]


def test_a_healthy_run_is_left_in_peace():
    records = run(30)
    assert health.diagnose(records) == []


@pytest.mark.parametrize(
    ("changes", "says", "setting"),
    [
        (
            {"health/dino_entropy_share": 1.0, "health/dino_entropy": 10.0},
            "dino teacher collapsed to uniform",
            "teacher_temperature",
        ),
        ({"health/ibot_entropy_share": 0.9999}, "ibot teacher collapsed to uniform", "teacher_temperature"),
        (
            {"health/dino_entropy_share": 0.001, "health/dino_used_share": 1 / 64},
            "dino teacher collapsed to few prototypes",
            "teacher_temperature",
        ),
        ({"health/rankme": 1.3}, "effective rank 1.30", "loss.koleo"),
        ({"loss/dino_local": 9.99}, "loss/dino_local is stuck", "schedules.lr"),
        ({"throughput/data_wait_share": 0.45}, "45% of the time is spent waiting", "data.workers"),
    ],
)
def test_each_illness_is_named_once_with_a_setting(changes, says, setting):
    records = run(30, **changes)
    (text,) = health.diagnose(records)
    assert says in text
    assert setting in text
    assert ("new workdir" in text) == (setting != "data.workers")
    assert "\n" not in text


def test_dense_feature_decay_needs_a_rise():
    alike = run(20, **{"health/patch_cosine": 0.9})
    assert health.diagnose(alike) == []
    records = run(10) + alike
    (text,) = health.diagnose(records)
    assert "dense features decay" in text
    assert "gram.teacher" in text


def test_nothing_is_said_during_warm_up_or_after_one_odd_record():
    ill = run(10, **{"health/rankme": 1.0, "health/dino_entropy_share": 1.0})
    assert health.diagnose(ill, warmup_steps=1001) == []
    assert health.diagnose(ill, warmup_steps=900) == []  # two records since the warm-up
    assert health.diagnose([*run(9), ill[-1]]) == []
    assert health.diagnose(ill[:1]) == []
    assert len(health.diagnose(ill[:3])) == 2


def test_confident_targets_over_many_prototypes_are_no_collapse():
    records = run(10, **{"health/dino_entropy_share": 0.001, "health/dino_used_share": 0.8})
    assert health.diagnose(records) == []


def test_records_without_health_are_no_gap():
    records = run(10, **{"health/rankme": 1.0})
    bare = [{"step": record["step"] + 50, "loss/total": 1.0} for record in records]
    mixed = [record for pair in zip(records, bare, strict=True) for record in pair]
    assert any("effective rank" in text for text in health.diagnose(mixed))
