"""Rotary position tables and their augmentation against the reference's, cases by hand, and properties.

Our tables are float32 whatever the compute dtype: they are small, and a coordinate in bfloat16 has 8 bits for the 2 pi
radians it is multiplied with. The reference's training builder always uses bfloat16 throughout (coordinates, periods,
angles), so those tables are compared within the rounding of that.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.models import rope
from tests.conftest import golden_parts
from tests.torch_weights import assert_close

PERIODS = golden_parts("v3_rope.npz", r"periods/(\w+)/fp32")
TABLES = golden_parts("v3_rope.npz", r"out/(\w+)/(\w+)/fp32/\d+x\d+/sin")
BFLOAT16_TABLES = golden_parts("v3_rope.npz", r"out/(\w+)/(\w+)/bf16/\d+x\d+/sin")


def tolerance(coords, periods) -> float:
    """Returns the allowed error of a table, whose angles carry eight roundings of 6e-8 each."""
    return 5e-7 * max(1.0, float(2 * np.pi * np.abs(coords).max() / np.min(periods)))


def head_dim_of(config: dict) -> int:
    return config["D"] // config["heads"]


def periods_of(config: dict, name: str) -> np.ndarray:
    return rope.periods(head_dim_of(config), **config["periods"][name])


@pytest.mark.golden
@pytest.mark.parametrize("name", PERIODS)
def test_periods(golden, name):
    g = golden("v3_rope.npz")
    assert_close(periods_of(g.config, name), g[f"periods/{name}/fp32"], relative=2e-7)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "normalize"), TABLES)
def test_tables(golden, name, normalize):
    g = golden("v3_rope.npz")
    periods = periods_of(g.config, name)
    for coords, expected, shape in recorded_tables(g, f"out/{name}/{normalize}/fp32/", normalize):
        for function, ours in zip(("sin", "cos"), rope.tables(coords, periods), strict=True):
            assert_close(ours, expected[function], absolute=tolerance(coords, periods), name=f"{shape} {function}")


def recorded_tables(g, prefix: str, normalize: str):
    """Yields the coordinates of each grid below `prefix`, its recorded sines and cosines, and its name."""
    for shape in dict.fromkeys(key.split("/")[0] for key in g.under(prefix)):
        coords = rope.coordinates(*map(int, shape.split("x")), normalize=normalize)
        yield coords, g.under(f"{prefix}{shape}/"), shape


@pytest.mark.golden
@pytest.mark.parametrize(("name", "normalize"), BFLOAT16_TABLES)
def test_tables_in_bfloat16_differ_by_their_rounding(golden, name, normalize):
    """Each of their angles is off by up to 2**-8 of itself at several places: coordinate, 2 pi, period, quotient."""
    g = golden("v3_rope.npz")
    periods = periods_of(g.config, name)
    # A power is rounded, and its exponent, which counts by the logarithm of the base.
    rounding = 2**-8 * (1 + np.log(periods.max() / periods.min()))
    np.testing.assert_allclose(periods, g[f"periods/{name}/bf16"], rtol=rounding)
    for coords, expected, shape in recorded_tables(g, f"out/{name}/{normalize}/bf16/", normalize):
        for function, ours in zip(("sin", "cos"), rope.tables(coords, periods), strict=True):
            assert ours.dtype == jnp.float32
            angle = 2 * np.pi * np.abs(coords).max() / periods.min()
            assert_close(ours, expected[function], absolute=4 * 2**-8 * angle, name=f"{shape} {function}")


@pytest.mark.golden
@pytest.mark.parametrize("case", ["shift", "jitter", "rescale", "all"])
def test_augmented_tables(golden, case):
    """Feeds the recorded raw draws; those that a case does not use are 0."""
    file = golden("v3_rope.npz")
    g = file.under(f"aug/{case}/")
    kinds = ("offset", "log_jitter", "log_rescale")
    used = kinds if case == "all" else [kinds[("shift", "jitter", "rescale").index(case)]]
    draws = {kind: np.zeros(1 if kind == "log_rescale" else 2, np.float32) for kind in kinds}
    draws |= {kind: g[f"draw{index}"] for index, kind in enumerate(used)}
    coords = rope.move_box(rope.coordinates(*g["HW"]), **draws)
    periods = periods_of(file.config, BFLOAT16_TABLES[0][0])  # the reference's default, also recorded in bfloat16
    for ours, function in zip(rope.tables(coords, periods), ("sin", "cos"), strict=True):
        assert_close(ours, g[function], absolute=tolerance(coords, periods), name=function)


@pytest.mark.golden
def test_augmentation_draws_within_the_references_limits(golden):
    """The limits of the raw draws are those that `augment` uses: +-shift, +-log(jitter), +-log(rescale)."""
    g = golden("v3_rope.npz").under("aug/all/")
    limits = [float(g[f"draw{index}_range"][1]) for index in range(3)]
    np.testing.assert_allclose([g[f"draw{index}_range"][0] for index in range(3)], [-limit for limit in limits])
    options = {"shift": limits[0], "jitter": float(np.exp(limits[1])), "rescale": float(np.exp(limits[2]))}
    corners = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    moved = jax.vmap(lambda key: rope.augment(corners, key, **options))(jax.random.split(jax.random.key(0), 4000))
    stretch = moved[:, 1] - moved[:, 0]
    offset = moved[:, 0] / stretch
    np.testing.assert_allclose(np.abs(offset).max(0), limits[0], rtol=0.02)
    # One factor of the two is shared by the axes: their quotient only holds the other.
    both, each = np.log(stretch).sum(1) / 2, np.log(stretch[:, 0] / stretch[:, 1])
    assert np.abs(each).max() <= 2 * limits[1] + 1e-5
    assert np.abs(both).max() <= limits[1] + limits[2] + 1e-5
    np.testing.assert_allclose(np.std(each), limits[1] * np.sqrt(2 / 3), rtol=0.05)
    np.testing.assert_allclose(np.var(both), limits[1] ** 2 / 6 + limits[2] ** 2 / 3, rtol=0.08)


def test_table_by_hand():
    """Two patches side by side lie at columns -0.5 and 0.5 of row 0; with period 1 that is half a turn."""
    coords = rope.coordinates(1, 2)
    np.testing.assert_array_equal(coords, [[0.0, -0.5], [0.0, 0.5]])
    sin, cos = rope.tables(coords, np.ones(1, np.float32))
    np.testing.assert_allclose(cos, [[1, -1, 1, -1]] * 2, atol=1e-6)
    np.testing.assert_allclose(sin, np.zeros((2, 4)), atol=1e-6)


def test_normalisation_keeps_the_aspect_with_min_and_max():
    assert np.ptp(rope.coordinates(4, 8), axis=0) == pytest.approx([1.5, 1.75])
    assert np.ptp(rope.coordinates(4, 8, normalize="max"), axis=0) == pytest.approx([0.75, 1.75])
    assert np.ptp(rope.coordinates(4, 8, normalize="min"), axis=0) == pytest.approx([1.5, 3.5])


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    """The product of a rotated query and a rotated key is a function of the difference of their places."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    grid = rope.coordinates(5, 5)
    table = rope.tables(grid, rope.periods(16))
    queries, keys = (rope.rotate(jnp.tile(x, (1, 25, 1, 1)), table)[0, :, 0] for x in (q, k))
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), jnp.linalg.norm(q), rtol=1e-5)
    products = np.asarray(queries @ keys.T).reshape(5, 5, 5, 5)
    np.testing.assert_allclose(products[:4, :4, :4, :4], products[1:, 1:, 1:, 1:], atol=1e-4)


def test_tokens_before_and_after_the_patches_are_not_rotated():
    table = rope.with_unrotated(rope.tables(rope.coordinates(2, 2), rope.periods(8)), before=3, after=1)
    x = jax.random.normal(jax.random.key(0), (1, 8, 2, 8))
    turned = rope.rotate(x, table)
    np.testing.assert_array_equal(turned[:, [0, 1, 2, 7]], x[:, [0, 1, 2, 7]])
    assert np.abs(turned[:, 3:7] - x[:, 3:7]).min() > 0


def test_rotation_is_computed_in_float32_and_returned_in_the_input_dtype():
    table = rope.tables(rope.coordinates(2, 2), rope.periods(8))
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8)).astype(jnp.bfloat16)
    exact = rope.rotate(x.astype(jnp.float32), table)
    assert rope.rotate(x, table).dtype == jnp.bfloat16
    np.testing.assert_array_equal(rope.rotate(x, table), exact.astype(jnp.bfloat16))


def test_augmentation_that_is_off_changes_nothing():
    coords = rope.coordinates(3, 5)
    np.testing.assert_array_equal(rope.augment(coords, jax.random.key(0)), coords)


@pytest.mark.parametrize("arguments", [{"head_dim": 10}, {"head_dim": 8, "base": None}])
def test_periods_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match=r"multiple of 4|rope_base"):
        rope.periods(**arguments)


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="separate"):
        rope.coordinates(2, 2, normalize="both")
