"""Block masks of the patch grid for iBOT, with the statistics of DINOv2 and DINOv3.

Samples are masked in groups of a fixed number of consecutive ones. Every group masks the same number of its global
crops, with the same target sizes in a random order. So the largest number of masked patches of a group follows from
the configuration, shapes never change, and nothing is compiled again.
"""

import math
from typing import Any

import numpy as np

MIN_BLOCK_AREA = 4  # patches; BEiT and DINOv2/v3
ASPECT = (0.3, 1 / 0.3)  # height / width of a block, log-uniform
ATTEMPTS = 10  # draws before a mask is given up as having no room for another block
ALIGNMENT = 8  # the padded bound of a group's masked patches is a multiple of this


def group_targets(*, crops: int, patches: int, ratio: tuple[float, float], probability: float) -> np.ndarray:
    """Returns for each masked crop of a group how many patches may be masked at most, int64 (masked crops,).

    int(crops * probability) crops are masked; their ratios are the upper ends of as many equal parts of `ratio`, in the
    float32 of the reference, which decides the rounding.
    """
    masked = int(crops * probability)
    return (np.float32(patches) * linspace(*ratio, masked + 1)[1:]).astype(np.int64)


def drawn_targets(
    rng: np.random.Generator, *, crops: int, patches: int, ratio: tuple[float, float], probability: float
) -> np.ndarray:
    """Returns targets as `group_targets` does, but each ratio drawn from its part, not at its end (DINOv2)."""
    ends = linspace(*ratio, int(crops * probability) + 1).astype(np.float64)
    return (patches * rng.uniform(ends[:-1], ends[1:])).astype(np.int64)


def linspace(first: float, last: float, count: int) -> np.ndarray:
    """Returns what `torch.linspace` does, float32 (count,): from both ends to the middle, each rounded once."""
    low, high = np.float32(first), np.float32(last)
    step = np.float64((high - low) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    upwards, downwards = np.float64(low) + step * index, np.float64(high) - step * (count - 1 - index)
    return np.where(index < count // 2, upwards, downwards).astype(np.float32)


def draw_masks(
    rng: np.random.Generator,
    *,
    crops: int,
    grid: tuple[int, int],
    ratio: tuple[float, float],
    probability: float,
    drawn_sizes: bool = False,
    circular_shift: bool = False,
) -> dict[str, np.ndarray]:
    """Draws the masks of one group (iBOT, section 3.2; DINOv2, section 4).

    Args:
      rng: source of every random choice.
      crops: global crops in the group (samples times global crops per sample).
      grid: rows and columns of patches in a global crop.
      ratio: range of the masked share of a masked crop.
      probability: share of the crops that are masked.
      drawn_sizes: masks have the sizes of `drawn_targets` or, where blocks do not fill them, less (DINOv2); otherwise
        those of `group_targets` exactly (DINOv3).
      circular_shift: rolls each mask by any number of rows and columns, round the edges.

    Returns:
      "masks" bool (crops, patches); "mask_indices" int32 (bound,), positions of the masked patches in the flattened
      masks, 0 on padding; "mask_weights" float32 (bound,), one over the masked patches of that crop, 0 on padding. The
      bound depends on the arguments alone.
    """
    patches = grid[0] * grid[1]
    options: dict[str, Any] = {"crops": crops, "patches": patches, "ratio": ratio, "probability": probability}
    most = group_targets(**options)
    draw, chosen = (blocks_only, drawn_targets(rng, **options)) if drawn_sizes else (block_mask, most)
    targets = np.zeros(crops, np.int64)
    targets[: len(chosen)] = chosen
    masks = np.stack([draw(rng, grid=grid, target=int(target)) for target in rng.permutation(targets)])
    if circular_shift:
        masks = np.stack([np.roll(mask, rng.integers(grid), axis=(0, 1)) for mask in masks])
    masks = masks.reshape(crops, patches)
    return {"masks": masks, **_pack(masks, bound=int(most.sum()))}


def block_mask(rng: np.random.Generator, *, grid: tuple[int, int], target: int) -> np.ndarray:
    """Masks exactly `target` patches, bool (rows, columns): blocks while they fit, then single patches (DINOv3)."""
    mask = blocks_only(rng, grid=grid, target=target)
    free = np.flatnonzero(~mask)
    mask.reshape(-1)[rng.choice(free, target - np.count_nonzero(mask), replace=False)] = True
    return mask


def blocks_only(rng: np.random.Generator, *, grid: tuple[int, int], target: int) -> np.ndarray:
    """Masks rectangles until `target` patches are masked or none fits any more, bool (rows, columns) (DINOv2).

    A block's area is uniform between 4 and the number still missing, at most half of the rows. A block is smaller than
    the grid in both directions and never overshoots the target.
    """
    mask = np.zeros(grid, bool)
    rows, columns = grid
    largest = rows // 2 * columns
    count, failures = 0, 0
    while count < target and failures < ATTEMPTS:
        room = min(target - count, largest)
        area, aspect, top, left = rng.random(4).tolist()
        area = MIN_BLOCK_AREA + (room - MIN_BLOCK_AREA) * area
        aspect = math.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspect)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        failures += 1
        if height >= rows or width >= columns:
            continue
        top, left = int(top * (rows - height + 1)), int(left * (columns - width + 1))
        block = mask[top : top + height, left : left + width]
        added = height * width - int(np.count_nonzero(block))
        if 0 < added <= room:
            block[...] = True
            count, failures = count + added, 0
    return mask


def _pack(masks: np.ndarray, *, bound: int) -> dict[str, np.ndarray]:
    """Lists the masked patches of masks (crops, patches), padded to `bound`, rounded up to a multiple of 8."""
    counts = masks.sum(1)
    indices = np.flatnonzero(masks)
    padding = (0, bound + -bound % ALIGNMENT - len(indices))
    weights = np.repeat(1 / np.maximum(counts, 1), counts)
    return {
        "mask_indices": np.pad(indices, padding).astype(np.int32),
        "mask_weights": np.pad(weights, padding).astype(np.float32),
    }
