"""Mask counts exactly, mask shapes by the reference's statistics."""

import fnmatch
from statistics import NormalDist

import numpy as np
import pytest

from dino_jax.data import masks
from tests.conftest import golden_grids

RECIPE = {"ratio": (0.1, 0.5), "probability": 0.5}
DRAWS, IN_DETAIL = 2000, 500  # masks; of these, as in the recorded files, those whose components are counted


def draw(grid, target, function=masks.block_mask):
    rng = np.random.default_rng(0)
    return np.stack([function(rng, grid=(grid, grid), target=target) for _ in range(DRAWS)])


def sigmas(scores: int) -> float:
    """Returns what the largest of so many normal scores exceeds for one in 10,000 recorded files."""
    return -NormalDist().inv_cdf(1e-4 / (2 * scores))


def components(mask):
    """Counts the 4-connected components of a mask and its isolated cells."""
    left, sizes = {tuple(cell) for cell in np.argwhere(mask).tolist()}, []
    while left:
        front, size = [left.pop()], 0
        while front:
            row, column = front.pop()
            size += 1
            for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if cell in left:
                    left.remove(cell)
                    front.append(cell)
        sizes.append(size)
    return len(sizes), sizes.count(1)


def neighbours(drawn):
    """Returns the share of masked cells whose right (lower) neighbour is masked too, and its deviation over masks."""
    pairs = [(drawn[:, :, :-1], drawn[:, :, 1:]), (drawn[:, :-1], drawn[:, 1:])]
    share = np.array([(first & second).sum() / first.sum() for first, second in pairs])
    # That of a quotient of sums, as single masks may have no such cell.
    deviation = [
        ((first & second).sum((1, 2)) - quotient * first.sum((1, 2))).std() / first.sum((1, 2)).mean()
        for quotient, (first, second) in zip(share, pairs, strict=True)
    ]
    return share, np.array(deviation)


def check_shapes(drawn, recorded, *, targets: int) -> None:
    """Compares where masks lie and how they hang together with recorded ones, of a file with so many targets."""
    number, frequency = recorded["count_histogram"].sum(), recorded["cell_frequency"]
    both = (drawn.sum(0) + number * frequency + 1) / (DRAWS + number + 2)  # one more of each: never 0 or 1
    scores = np.abs(drawn.mean(0) - frequency) / np.sqrt(both * (1 - both) * (1 / DRAWS + 1 / number))
    assert scores.max() < sigmas(scores.size * targets)

    allowed = sigmas(4 * targets) * np.sqrt(1 / DRAWS + 1 / number)  # of four numbers for each target
    share, deviation = neighbours(drawn)
    assert (np.abs(share - recorded["p_neighbour_masked_right_down"]) <= allowed * deviation).all()

    allowed = sigmas(4 * targets) * np.sqrt(1 / IN_DETAIL + 1 / min(IN_DETAIL, number))
    pieces, isolated = np.array([components(mask) for mask in drawn[:IN_DETAIL]]).T
    mean, deviation = recorded["n_components_mean_std"]
    assert abs(pieces.mean() - mean) <= allowed * max(deviation, pieces.std())
    mean = float(recorded["n_isolated_cells_mean"])
    assert abs(isolated.mean() - mean) <= allowed * max(mean**0.5, isolated.std())  # rare ones spread as Poisson's


@pytest.mark.golden
@pytest.mark.parametrize("grid", golden_grids("v3_masking_stats.npz"))
def test_statistics_equal_the_reference(golden, grid):
    file = golden("v3_masking_stats.npz")
    for target in file[f"grid{grid}/targets"].tolist():
        drawn = draw(grid, target)
        assert (drawn.sum((1, 2)) == target).all()
        check_shapes(drawn, file.under(f"grid{grid}/target{target}/"), targets=number_of_targets(file))


@pytest.mark.golden
@pytest.mark.parametrize("grid", golden_grids("v2_masking_stats.npz"))
def test_blocks_alone_stop_short_as_often_as_dinov2(golden, grid):
    """And lie where its do."""
    file = golden("v2_masking_stats.npz")
    targets = number_of_targets(file)
    for target in file[f"grid{grid}/targets"].tolist():
        drawn, recorded = draw(grid, target, masks.blocks_only), file.under(f"grid{grid}/target{target}/")
        counts, number = drawn.sum((1, 2)), recorded["count_histogram"].sum()
        mean, deviation, _, _ = recorded["count_mean_std_min_max"]
        assert counts.max() <= target
        error = max(deviation, counts.std()) * np.sqrt(1 / DRAWS + 1 / number)
        assert abs(counts.mean() - mean) <= sigmas(targets) * error
        check_shapes(drawn, recorded, targets=targets)


def number_of_targets(file) -> int:
    return sum(len(file[name]) for name in fnmatch.filter(file, "grid*/targets"))


def masked_counts(file) -> np.ndarray:
    """Returns the masked patches of every crop of the recorded batches, (batches, crops), in order of their number."""
    (name,) = fnmatch.filter(file, "collate/masked_counts_*_batches")  # the name has the number of batches
    return np.sort(file[name])


@pytest.mark.golden
def test_counts_equal_the_reference_collate(golden):
    file = golden("v3_masking_stats.npz")
    crops, patches, ratio = 2 * file.config["B"], int(file["collate/N_tokens"]), tuple(file.config["mask_ratio"])
    targets = masks.group_targets(
        crops=crops, patches=patches, ratio=ratio, probability=file.config["mask_probability"]
    )
    np.testing.assert_array_equal(targets, file["collate/int_N_times_prob_max"])
    np.testing.assert_array_equal(masks.linspace(*ratio, len(targets) + 1), file["collate/probs_linspace"])
    for counts in masked_counts(file):
        np.testing.assert_array_equal(counts, [0] * (crops - len(targets)) + targets.tolist())


@pytest.mark.golden
def test_drawn_counts_have_the_statistics_of_dinov2s_collate(golden):
    file = golden("v2_masking_stats.npz")
    recorded, ends = masked_counts(file), file["collate/int_N_times_prob_max"]
    crops, patches, ratio = 2 * file.config["B"], int(file["collate/N_tokens"]), tuple(file.config["mask_ratio"])
    options = {
        "crops": crops,
        "grid": (file.config["grid"], patches // file.config["grid"]),
        "ratio": ratio,
        "probability": file.config["mask_probability"],
        "drawn_sizes": True,
    }
    groups = [masks.draw_masks(np.random.default_rng(seed), **options) for seed in range(len(recorded))]
    drawn = np.sort([group["masks"].sum(1) for group in groups])

    np.testing.assert_array_equal(masks.linspace(*ratio, len(ends) + 1), file["collate/probs_linspace"])
    bound = ends.sum()
    for group, counts in zip(groups, drawn, strict=True):
        assert len(group["mask_indices"]) == bound + -bound % masks.ALIGNMENT
        np.testing.assert_array_equal(group["mask_indices"][: counts.sum()], np.flatnonzero(group["masks"]))
        assert (group["mask_weights"][counts.sum() :] == 0).all()
    unmasked = crops - len(ends)
    assert not drawn[:, :unmasked].any() and not recorded[:, :unmasked].any()
    # In a narrow interval a crop's size may be the same in all batches but a few, so it is not taken as uniform.
    (ours, our_spread), (theirs, their_spread) = (moments(counts[:, unmasked:]) for counts in (drawn, recorded))
    allowed = sigmas(ours.size) * np.sqrt((our_spread**2 + their_spread**2) / len(recorded))
    assert (np.abs(ours - theirs) <= allowed).all()


def moments(counts):
    """Returns mean and variance over batches of each crop's count, and the spreads of the numbers they are means of."""
    values = np.stack([counts, (counts - counts.mean(0)) ** 2])
    return values.mean(1), values.std(1)


def test_the_published_recipe_masks_1274_patches_of_32_crops():
    options = {"crops": 32, "patches": 256, **RECIPE}
    assert masks.group_targets(**options).sum() == 1274


@pytest.mark.parametrize("ratio", [(0.1, 0.5), (0.1, 0.6), (0.2, 0.45)])
def test_linspace_is_that_of_torch(ratio):
    """To the last bit, as truncation follows; NumPy's differs in nine of ten of these."""
    torch = pytest.importorskip("torch")
    for count in range(2, 130):
        np.testing.assert_array_equal(masks.linspace(*ratio, count), torch.linspace(*ratio, count).numpy())


def test_a_group_is_packed_as_its_masks_say():
    for seed in range(5):
        group = masks.draw_masks(np.random.default_rng(seed), crops=16, grid=(6, 8), **RECIPE)
        drawn, indices, weights = group["masks"], group["mask_indices"], group["mask_weights"]
        total = masks.group_targets(crops=16, patches=48, **RECIPE).sum()
        bound = total + -total % 8
        assert drawn.shape == (16, 48) and drawn.dtype == bool
        assert indices.shape == weights.shape == (bound,)
        assert indices.dtype == np.int32 and weights.dtype == np.float32
        total = drawn.sum()
        np.testing.assert_array_equal(indices[:total], np.flatnonzero(drawn))
        assert (weights[total:] == 0).all()
        np.testing.assert_allclose(weights[:total], 1 / drawn.sum(1)[indices[:total] // 48], rtol=1e-6)
        assert (drawn.sum(1) > 0).sum() == 8
        np.testing.assert_allclose(weights.sum(), 8, rtol=1e-5)


def test_groups_differ_and_repeat_with_their_seed():
    first, again, other = (
        masks.draw_masks(np.random.default_rng(seed), crops=8, grid=(8, 8), **RECIPE)["masks"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_crop_is_masked_at_probability_zero():
    group = masks.draw_masks(np.random.default_rng(0), crops=8, grid=(8, 8), ratio=(0.1, 0.5), probability=0.0)
    assert not group["masks"].any() and group["mask_indices"].shape == (0,)


def test_a_full_mask_and_tiny_grids_are_reached():
    for grid, target in (((4, 4), 16), ((2, 2), 3), ((1, 5), 2), ((7, 3), 20)):
        assert masks.block_mask(np.random.default_rng(0), grid=grid, target=target).sum() == target


def test_circular_shift_keeps_sizes_and_rolls_round_the_edges():
    plain, rolled = (
        masks.draw_masks(np.random.default_rng(0), crops=400, grid=(8, 8), circular_shift=shift, **RECIPE)
        for shift in (False, True)
    )
    np.testing.assert_array_equal(plain["masks"].sum(1), rolled["masks"].sum(1))
    frequency = np.stack([group["masks"].reshape(400, 8, 8).mean(0) for group in (plain, rolled)])
    corners = frequency[:, [0, 0, 7, 7], [0, 7, 0, 7]].mean(1)
    middle = frequency[:, 3:5, 3:5].mean((1, 2))
    assert corners[0] < 0.6 * middle[0]  # few rectangles reach a corner
    assert abs(corners[1] - middle[1]) < 0.05  # two standard errors of 1,600 cells masked with probability 0.15
