import numpy as np
import pytest

from dino_jax.evals import depth


def random_depth(seed=0, size=(12, 16)):
    return np.random.default_rng(seed).uniform(0.5, 8, size)


def test_errors_by_hand():
    truth = np.array([[1.0, 2.0, 4.0, 0.0]])
    predicted = np.array([[1.0, 3.0, 3.0, 9.0]])
    errors = depth.depth_errors(truth, predicted)
    assert errors["rmse"] == pytest.approx(np.sqrt((0 + 1 + 1) / 3))
    assert errors["abs_rel"] == pytest.approx((0 + 1 / 2 + 1 / 4) / 3)
    assert errors["delta1"] == pytest.approx(1 / 3)
    assert errors["log10"] == pytest.approx((np.log10(3 / 2) + np.log10(4 / 3)) / 3)
    assert errors["silog"] == pytest.approx(np.std([0, np.log(3 / 2), np.log(3 / 4)]))


def test_the_truth_has_no_error():
    truth = random_depth()
    assert depth.depth_errors(truth, truth) == {
        **dict.fromkeys(("rmse", "abs_rel", "log10", "silog"), 0.0),
        "delta1": 1.0,
    }


def test_a_wrong_scale_leaves_silog_alone():
    truth, predicted = random_depth(0), random_depth(1)
    one, other = (depth.depth_errors(truth, factor * predicted) for factor in (1, 7))
    assert one["silog"] == pytest.approx(other["silog"]) and one["rmse"] != pytest.approx(other["rmse"])


@pytest.mark.parametrize("shift", [False, True])
def test_alignment_undoes_scale_and_shift(shift):
    truth = random_depth()
    aligned = depth.align(truth, (truth - (0.3 if shift else 0)) / 5, shift=shift)
    np.testing.assert_allclose(aligned, truth, rtol=1e-9)


def test_alignment_is_the_least_squares_fit():
    truth, predicted = random_depth(0), random_depth(1)
    slope, offset = np.polyfit(predicted.ravel(), truth.ravel(), 1)
    np.testing.assert_allclose(depth.align(truth, predicted, shift=True), slope * predicted + offset, rtol=1e-6)


def test_unknown_depth_counts_nowhere():
    truth, predicted = random_depth(0), random_depth(1)
    holes = np.random.default_rng(2).random(truth.shape) < 0.3
    noisy = np.where(holes, 1e6, predicted)
    truth = np.where(holes, 0, truth)
    assert depth.depth_errors(truth, noisy) == depth.depth_errors(truth, predicted)
    np.testing.assert_allclose(
        depth.align(truth, noisy, shift=True)[~holes], depth.align(truth, predicted, shift=True)[~holes]
    )


def test_eigen_crop_of_the_full_frame():
    inside = depth.eigen_crop((480, 640))
    assert inside.sum() == (471 - 45) * (601 - 41) and inside[45, 41] and not inside[44, 41] and not inside[471, 600]
    assert depth.eigen_crop((240, 320)).sum() == pytest.approx(inside.sum() / 4, rel=0.01)


def test_mean_over_images():
    assert depth.mean_errors([{"rmse": 1.0}, {"rmse": 2.0}]) == {"rmse": 1.5}


@pytest.mark.parametrize(
    "truth, predicted, message",
    [
        (np.ones((2, 3)), np.ones((3, 2)), "resize it first"),
        (np.zeros((2, 3)), np.ones((2, 3)), "no pixel of a depth map is known"),
        (np.ones((2, 3)), np.zeros((2, 3)), "not positive"),
    ],
)
def test_bad_input_is_one_line(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        depth.depth_errors(truth, predicted)
    with pytest.raises(ValueError, match="no image"):
        depth.mean_errors([])
