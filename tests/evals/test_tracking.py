import numpy as np
import pytest
from skimage.morphology import dilation, disk

from dino_jax.evals import tracking


def moving_squares(frames=10, *, patch=4):
    """Masks of two squares that move by whole patches, and features that say which is where."""
    coarse = np.zeros((frames, 10, 12), int)
    for frame in range(frames):
        coarse[frame, 1:4, frame % 9 : frame % 9 + 3] = 1
        coarse[frame, 6:9, 8 - frame % 9 : 8 - frame % 9 + 3] = 2
    random = np.random.default_rng(0)
    patches = np.eye(3)[coarse] @ random.normal(size=(3, 8)) + 0.01 * random.normal(size=(*coarse.shape, 8))
    return patches.astype(np.float32), coarse.repeat(patch, 1).repeat(patch, 2)


def disk_mask(radius, *, center=(30, 40), size=(60, 80)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def test_features_of_the_objects_follow_them_everywhere():
    patches, masks = moving_squares(patch=1)
    followed = tracking.propagate(patches, masks[0])
    np.testing.assert_array_equal(followed, masks)
    assert tracking.score_video(masks, followed) == {1: (1.0, 1.0), 2: (1.0, 1.0)}


def test_masks_are_upsampled_to_the_frame():
    patches, masks = moving_squares()
    scores = tracking.score_video(masks, tracking.propagate(patches, masks[0]))
    assert all(region > 0.85 and border > 0.95 for region, border in scores.values())


def test_noise_follows_no_better_than_a_mask_that_stays():
    patches, masks = moving_squares(patch=1)
    noise = np.random.default_rng(1).normal(size=patches.shape)
    followed = tracking.score_video(masks, tracking.propagate(noise, masks[0]))
    staying = tracking.score_video(masks, np.broadcast_to(masks[0], masks.shape))
    for label in (1, 2):
        assert followed[label][0] <= staying[label][0] + 0.05 < 0.15


def test_propagation_is_the_definition():
    """Against loops over frames and patches."""
    random = np.random.default_rng(2)
    patches = random.normal(size=(5, 4, 5, 3))
    mask = random.integers(0, 3, (4, 5))
    unit = (patches / np.linalg.norm(patches, axis=-1, keepdims=True)).reshape(5, 20, 3)
    labels = [np.eye(3)[mask.ravel()]]
    for frame in range(1, 5):
        context = [0, *range(max(1, frame - 2), frame)]
        new = np.zeros((20, 3))
        for patch in range(20):
            votes = [
                (np.exp(unit[frame, patch] @ unit[source, other] / 0.2), labels[source][other])
                for source in context
                for other in range(20)
                if max(abs(patch // 5 - other // 5), abs(patch % 5 - other % 5)) <= 1
            ]
            votes = sorted(votes, key=lambda vote: -vote[0])[:4]
            new[patch] = sum(weight * label for weight, label in votes) / sum(weight for weight, _ in votes)
        labels.append(new)
    followed = tracking._follow(patches.astype(np.float32), np.eye(3)[mask], context=2, radius=1, top_k=4, heat=0.2)
    np.testing.assert_allclose(followed.reshape(4, 20, 3), labels[1:], atol=1e-5)


def test_all_vote_where_there_are_fewer_than_may():
    patches, masks = moving_squares(patch=1)
    candidates = 3 * patches.shape[1] * patches.shape[2]
    few, many = (
        tracking.propagate(patches, masks[0], context=2, top_k=top_k) for top_k in (candidates, 10 * candidates)
    )
    np.testing.assert_array_equal(few, many)


def test_void_is_not_followed():
    patches, masks = moving_squares(patch=1)
    first = masks[0].copy()
    first[0, 0] = 255
    assert tracking.propagate(patches, first)[0, 0, 0] == 0


def test_region_similarity_by_hand():
    truth, found = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    truth[:2], found[1:3] = True, True
    assert tracking.region_similarity(truth, found) == 4 / 12
    assert tracking.region_similarity(truth, found, void=np.arange(4)[:, None].repeat(4, 1) == 2) == 4 / 8
    assert tracking.region_similarity(truth & False, found & False) == 1
    assert tracking.region_similarity(truth, found & False) == 0


def test_boundary_by_hand():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    expected = np.zeros((5, 5), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(tracking.boundary(mask), expected)
    assert not tracking.boundary(np.ones((5, 5), bool)).any()


def test_boundaries_of_random_masks_are_those_of_the_definition():
    """A pixel unlike the one to the right, below, or right below, of those that the image has."""
    random = np.random.default_rng(0)
    for _ in range(50):
        mask = random.random((6, 8)) < random.random()
        expected = np.zeros_like(mask)
        for row, column in np.ndindex(mask.shape):
            others = mask[row : row + 2, column : column + 2]
            expected[row, column] = (others != mask[row, column]).any()
        np.testing.assert_array_equal(tracking.boundary(mask), expected)


def test_boundary_measure_is_the_dilation_of_the_definition():
    truth, found = disk_mask(20), disk_mask(19, center=(31, 40))
    reach = disk(int(np.ceil(tracking.TOLERANCE * np.hypot(60, 80))))
    true, guess = tracking.boundary(truth), tracking.boundary(found)
    precision = (guess & dilation(true, reach)).sum() / guess.sum()
    recall = (true & dilation(guess, reach)).sum() / true.sum()
    expected = 2 * precision * recall / (precision + recall)
    assert 0.5 < expected < 1
    assert tracking.boundary_measure(truth, found) == pytest.approx(expected)


def test_boundary_measure_of_shifted_squares():
    """A square shifted by one pixel is within one pixel everywhere; by five, only where borders overlap."""
    truth = np.zeros((80, 60), bool)  # diagonal 100: 0.8 % is one pixel
    truth[20:40, 20:40] = True
    assert tracking.boundary_measure(truth, truth) == 1
    assert tracking.boundary_measure(truth, np.roll(truth, 1, axis=1)) == 1
    assert tracking.boundary_measure(truth, np.roll(truth, 5, axis=1)) < 0.8
    assert tracking.boundary_measure(truth, np.roll(truth, 40, axis=0)) == 0


def test_boundary_measure_of_empty_masks():
    mask = disk_mask(10)
    assert tracking.boundary_measure(mask & False, mask & False) == 1
    assert tracking.boundary_measure(mask, mask & False) == 0
    assert tracking.boundary_measure(mask & False, mask) == 0


def test_first_and_last_frame_do_not_count():
    truth = np.zeros((4, 8, 8), int)
    truth[:, 2:5, 2:5] = 1
    found = truth.copy()
    found[[0, 3]] = 0
    found[2] = 0
    assert tracking.score_video(truth, found) == {1: (0.5, 0.5)}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"first_mask": np.zeros((10, 12), int)}, "no object to follow"),
        ({"patches": np.full((3, 10, 12, 2), np.nan)}, "not all finite"),
        ({"top_k": 0}, "must be 1 or more"),
        ({"temperature": np.nan}, "the temperature positive and finite"),
    ],
)
def test_bad_input_is_one_line(change, message):
    patches, masks = moving_squares(3, patch=1)
    with pytest.raises(ValueError, match=message):
        tracking.propagate(**({"patches": patches, "first_mask": masks[0]} | change))
    with pytest.raises(ValueError, match="three frames or more"):
        tracking.score_video(masks[:2], masks[:2])
    with pytest.raises(ValueError, match="resize it first"):
        tracking.region_similarity(masks[0], masks[0].T)
