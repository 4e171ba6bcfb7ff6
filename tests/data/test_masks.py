"""Mask counts exactly, mask shapes by the reference's statistics."""

import numpy as np
import pytest

from dino_jax.data import masks
from tests.conftest import golden_grids

RECIPE = {"ratio": (0.1, 0.5), "probability": 0.5}


def draw(grid, target, number=2000, function=masks.block_mask):
    rng = np.random.default_rng(0)
    return np.stack([function(rng, grid=(grid, grid), target=target) for _ in range(number)])


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
    """Returns the share of masked cells whose right (lower) neighbour is masked too, and its standard error."""
    pairs = [(drawn[:, :, :-1], drawn[:, :, 1:]), (drawn[:, :-1], drawn[:, 1:])]
    share = np.array([(first & second).sum() / first.sum() for first, second in pairs])
    # That of a quotient of sums, as single masks may have no such cell.
    error = [
        ((first & second).sum((1, 2)) - quotient * first.sum((1, 2))).std() / first.sum((1, 2)).mean()
        for quotient, (first, second) in zip(share, pairs, strict=True)
    ]
    return share, np.array(error) / np.sqrt(len(drawn))


@pytest.mark.golden
@pytest.mark.parametrize("grid", golden_grids("v3_masking_stats.npz"))
def test_statistics_equal_the_reference(golden, grid):
    file = golden("v3_masking_stats.npz")
    for target in file[f"grid{grid}/targets"].tolist():
        recorded = file.under(f"grid{grid}/target{target}/")
        drawn = draw(grid, target)
        assert (drawn.sum((1, 2)) == target).all()

        # Both sides are 2000 draws, so a difference has the sum of two variances. 4.5 sigma: of the largest of a few
        # hundred normal scores. All other comparisons are at 4 sigma.
        frequency, expected = drawn.mean(0), recorded["cell_frequency"]
        spread = np.sqrt((frequency * (1 - frequency) + expected * (1 - expected)) / len(drawn))
        assert (np.abs(frequency - expected) / np.maximum(spread, 1e-3)).max() < 4.5

        share, error = neighbours(drawn)
        assert (np.abs(share - recorded["p_neighbour_masked_right_down"]) <= 4 * np.sqrt(2) * error).all()

        counted = np.array([components(mask) for mask in drawn[:500]])
        mean, deviation = recorded["n_components_mean_std"]
        assert abs(counted[:, 0].mean() - mean) <= 4 * deviation * np.sqrt(2 / 500)
        isolated = counted[:, 1].std() * np.sqrt(2 / 500)
        assert abs(counted[:, 1].mean() - recorded["n_isolated_cells_mean"]) <= 4 * isolated


@pytest.mark.golden
@pytest.mark.parametrize("grid", golden_grids("v2_masking_stats.npz"))
def test_blocks_alone_stop_short_as_often_as_dinov2(golden, grid):
    file = golden("v2_masking_stats.npz")
    for target in file[f"grid{grid}/targets"].tolist():
        counts = draw(grid, target, function=masks.blocks_only).sum((1, 2))
        mean, deviation, _, most = file[f"grid{grid}/target{target}/count_mean_std_min_max"]
        assert counts.max() <= most == target
        assert abs(counts.mean() - mean) <= 4 * max(deviation, counts.std()) * np.sqrt(2 / len(counts))


@pytest.mark.golden
def test_counts_equal_the_reference_collate(golden):
    file = golden("v3_masking_stats.npz")
    crops, patches = 2 * file.config["B"], int(file["collate/N_tokens"])
    targets = masks.group_targets(
        crops=crops,
        patches=patches,
        ratio=tuple(file.config["mask_ratio"]),
        probability=file.config["mask_probability"],
    )
    np.testing.assert_array_equal(targets, file["collate/int_N_times_prob_max"])
    for counts in file["collate/masked_counts_200_batches"]:
        np.testing.assert_array_equal(np.sort(counts)[-len(targets) :], targets)
        assert counts.sum() == targets.sum()


@pytest.mark.golden
def test_drawn_counts_have_the_statistics_of_dinov2s_collate(golden):
    file = golden("v2_masking_stats.npz")
    recorded = np.sort(file["collate/masked_counts_200_batches"])
    crops, patches = 2 * file.config["B"], int(file["collate/N_tokens"])
    options = {
        "crops": crops,
        "grid": (file.config["grid"], patches // file.config["grid"]),
        "ratio": tuple(file.config["mask_ratio"]),
        "probability": file.config["mask_probability"],
        "drawn_sizes": True,
    }
    groups = [masks.draw_masks(np.random.default_rng(seed), **options) for seed in range(len(recorded))]
    drawn = np.sort([group["masks"].sum(1) for group in groups])

    bound = file["collate/int_N_times_prob_max"].sum()
    for group, counts in zip(groups, drawn, strict=True):
        assert len(group["mask_indices"]) == bound + -bound % masks.ALIGNMENT
        np.testing.assert_array_equal(group["mask_indices"][: counts.sum()], np.flatnonzero(group["masks"]))
        assert (group["mask_weights"][counts.sum() :] == 0).all()
    # A crop's size is uniform in its interval, so its mean over the batches has the standard error of that: 4.5 sigma
    # for the largest of as many scores as there are crops. The spread of n uniform numbers has an error of
    # 0.45 / sqrt(n) of itself, twice here: 4.5 sigma again.
    unmasked = crops - len(file["collate/int_N_times_prob_max"])
    assert not drawn[:, :unmasked].any() and not recorded[:, :unmasked].any()
    ours, theirs = drawn[:, unmasked:], recorded[:, unmasked:]
    error = np.sqrt((ours.var(0) + theirs.var(0)) / len(recorded))
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * error).all()
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=3 / np.sqrt(len(recorded)))


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
