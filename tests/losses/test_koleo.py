import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.losses.koleo import koleo_loss
from tests.conftest import golden_names, golden_parts
from tests.torch_weights import assert_close

# A mean of logarithms may be near 0: each is rounded by some 1e-7.
ROUNDING = 2e-7
loss_and_gradient = jax.jit(jax.value_and_grad(koleo_loss), static_argnames=("topk", "group_size"))


def reference(x, topk):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)[:, 1 : topk + 1]
    return -np.log(distances).mean()


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_by_hand():
    # Three unit vectors at 0, 60 and 180 degrees (lengths do not matter): nearest distances 1, 1 and sqrt(3).
    x = np.array([[2.0, 0.0], [0.5, np.sqrt(3) / 2], [-7.0, 0.0]], np.float32)
    np.testing.assert_allclose(loss_and_gradient(x, topk=1)[0], -np.log(3) / 6, rtol=1e-5)


@pytest.mark.parametrize("topk", [1, 3])
def test_against_numpy(topk):
    x = normal(12, 5)
    np.testing.assert_allclose(loss_and_gradient(x, topk=topk)[0], reference(x.astype(np.float64), topk), rtol=1e-5)


def test_groups_are_losses_of_their_own():
    x = normal(12, 5)
    expected = np.mean([reference(x[start : start + 4].astype(np.float64), 2) for start in (0, 4, 8)])
    np.testing.assert_allclose(loss_and_gradient(x, topk=2, group_size=4)[0], expected, rtol=1e-5)


def test_opposite_samples_are_each_others_neighbour():
    value, _ = loss_and_gradient(np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32), topk=1)
    np.testing.assert_allclose(value, -np.log(2), rtol=1e-6)


def test_invariant_to_rotation_and_length():
    x = normal(8, 4)
    rotation, _ = np.linalg.qr(normal(4, 4))
    moved = (3.0 * x @ rotation).astype(np.float32)
    np.testing.assert_allclose(loss_and_gradient(moved, topk=1)[0], loss_and_gradient(x, topk=1)[0], rtol=1e-5)


@pytest.mark.parametrize("row", [1.0, 0.0])
def test_duplicates_and_zeros_have_a_tame_gradient(row):
    x = normal(8, 4)
    x[0] = x[1] = row
    value, gradient = loss_and_gradient(x, topk=1)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    if row:
        assert np.abs(gradient).max() < 10


def test_bad_groups():
    x = jnp.array(normal(6, 3))
    with pytest.raises(ValueError, match="does not divide 6"):
        koleo_loss(x, topk=1, group_size=4)
    with pytest.raises(ValueError, match="must be 1 to 2"):
        koleo_loss(x, group_size=3, topk=3)


def neighbours_in(case: str) -> int:
    """Reads how many neighbours a recorded loss has from its name, which says so unless there is one."""
    number = re.search(r"topk(\d+)", case)
    return int(number[1]) if number else 1


@pytest.mark.golden
@pytest.mark.parametrize("name", golden_parts("v3_koleo.npz", r"out/(v\w+)"))
def test_golden(golden, name):
    file, topk = golden("v3_koleo.npz"), neighbours_in(name)
    value, gradient = loss_and_gradient(file["in/x"], topk=topk)
    assert_close(value, file[f"out/{name}"], absolute=ROUNDING, relative=1e-6)
    assert_close(gradient, file[f"grad_input/{name}"], relative=2e-6)
    duplicate, _ = loss_and_gradient(file["in/x_with_duplicate"], topk=topk)
    assert_close(duplicate, file[f"out/{name}/duplicate"], absolute=ROUNDING, relative=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("topk", golden_parts("v3_koleo.npz", r"out/nn_index_top(\d+)"))
def test_golden_of_the_neighbours(golden, topk):
    """The distances to the recorded neighbours make up our loss."""
    file = golden("v3_koleo.npz")
    x, neighbours = file["in/x"].astype(np.float64), file[f"out/nn_index_top{topk}"].reshape(-1, int(topk))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = -np.log(np.linalg.norm(x[:, None] - x[neighbours], axis=-1)).mean()
    value, _ = loss_and_gradient(file["in/x"], topk=int(topk))
    assert_close(value, expected, absolute=ROUNDING, relative=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in golden_names("v3_dist_world*.npz")
        for case in golden_parts(name, r"rank0/koleo/out/(\w+)")
    ],
)
def test_golden_over_ranks(golden, name, case):
    """The mean over ranks is the global loss; a rank's gradient is that of the sum over ranks."""
    file, topk, local = golden(name), neighbours_in(case), case.endswith("_local")
    ranks = [file.under(f"rank{rank}/koleo/") for rank in range(file.config["world"])]
    x = np.concatenate([rank["in/x"] for rank in ranks])
    value, gradient = loss_and_gradient(x, topk=topk, group_size=len(ranks[0]["in/x"]) if local else None)
    assert_close(value, np.mean([rank[f"out/{case}"] for rank in ranks]), absolute=ROUNDING, relative=2e-6)
    expected = np.concatenate([rank[f"grad_input/{case}"] for rank in ranks])
    assert_close(len(ranks) * gradient, expected, relative=2e-6)
