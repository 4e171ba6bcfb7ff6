"""Follows objects through a video by the similarity of patches, and scores masks by the DAVIS definitions.

Propagation: Jabri et al., arXiv 2006.14613; DINO, arXiv 2104.14294, section 4.2.2; DINOv3, arXiv 2508.10104, 6.1.4.
Scores: Perazzi et al., CVPR 2016 (J and F); Pont-Tuset et al., arXiv 1704.00675 (several objects).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import distance_transform_edt

from dino_jax.evals.features import check_finite, unit
from dino_jax.evals.segmentation import class_shares, upsample

VOID = 255
CONTEXT, RADIUS, TOP_K, TEMPERATURE = 7, 12, 5, 0.1  # DINO's protocol
TOLERANCE = 0.008  # of the image's diagonal: how far a boundary may be off


def propagate(
    patches: np.ndarray,
    first_mask: np.ndarray,
    *,
    context: int = CONTEXT,
    radius: int = RADIUS,
    top_k: int = TOP_K,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Carries the objects of the first frame through a video.

    Each patch takes the average label of the `top_k` most similar patches among those at most `radius` away (in rows
    and in columns) in the first and the `context` last frames, weighted by exp(cosine / temperature).

    Args:
      patches: `(frames, rows, columns, dim)`.
      first_mask: `(height, width)`, 0 background, 1, 2, ... objects, 255 void.
      context: number of last frames.
      radius: in patches.
      top_k: neighbours that vote, at most.
      temperature: of the vote.

    Returns:
      Labels of every frame, int32 `(frames, height, width)`; the first is the given mask (void as background).

    Raises:
      ValueError: when a feature is not finite, there is no object, or an option is out of range.
    """
    objects = first_mask[(first_mask > 0) & (first_mask != VOID)]
    if not objects.size:
        raise ValueError("tracking: the first mask has no object to follow")
    check_finite(patches, "tracking: features")
    if min(context, radius, top_k) < 1 or not 0 < temperature < math.inf:
        raise ValueError("tracking: context, radius and top-k must be 1 or more, the temperature positive and finite")
    start = np.where(first_mask == VOID, 0, first_mask)
    shares, _ = class_shares(start[None], patches.shape[1:3], classes=int(objects.max()) + 1)
    labels = _follow(
        jnp.asarray(patches, jnp.float32), shares[0], context=context, radius=radius, top_k=top_k, heat=temperature
    )
    masks = [_to_mask(frame, size=first_mask.shape) for frame in labels]
    return np.stack([start, *(np.asarray(mask) for mask in masks)]).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("context", "radius", "top_k"))
def _follow(patches: jax.Array, first: jax.Array, *, context: int, radius: int, top_k: int, heat: float) -> jax.Array:
    """Returns soft labels `(frames - 1, rows, columns, objects)` of all frames but the first."""
    frames, rows, columns, dim = patches.shape
    patches = unit(patches).reshape(frames, rows * columns, dim)
    near = jnp.asarray(_near(rows, columns, radius))
    first = first.reshape(rows * columns, -1)

    def carry_on(labels: jax.Array, frame: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The first frame and the last ones; until there are enough of these, the surplus is masked out.
        last = frame - 1 - jnp.arange(context)
        sources = jnp.concatenate([jnp.zeros(1, last.dtype), jnp.maximum(last, 0)])
        usable = jnp.concatenate([jnp.ones(1, bool), last > 0])
        cosines = jnp.einsum("td,csd->tcs", patches[frame], patches[sources], precision=jax.lax.Precision.HIGHEST)
        allowed = near[:, None, :] & usable[None, :, None]
        candidates = jnp.where(allowed, cosines, -jnp.inf).reshape(rows * columns, -1)
        best, where = jax.lax.top_k(candidates, min(top_k, candidates.shape[1]))
        votes = jax.nn.softmax(best / heat, axis=-1)
        found = labels[sources].reshape(-1, labels.shape[-1])[where]
        new = jnp.einsum("tk,tko->to", votes, found, precision=jax.lax.Precision.HIGHEST)
        return labels.at[frame].set(new), new

    labels = jnp.zeros((frames, *first.shape)).at[0].set(first)
    _, followed = jax.lax.scan(carry_on, labels, jnp.arange(1, frames))
    return followed.reshape(frames - 1, rows, columns, -1)


def _near(rows: int, columns: int, radius: int) -> np.ndarray:
    """Tells which patches are at most `radius` rows and columns apart, bool `(patches, patches)`."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    return (abs(row[:, None] - row) <= radius) & (abs(column[:, None] - column) <= radius)


@functools.partial(jax.jit, static_argnames="size")
def _to_mask(labels: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """Upsamples soft labels `(rows, columns, objects)`, each stretched to [0, 1], and takes the largest.

    The stretching is the published protocol's: it keeps small objects, whose labels fade as they are carried on.
    """
    maps = upsample(labels[None], size)[0]
    low, high = maps.min(axis=(0, 1)), maps.max(axis=(0, 1))
    stretched = (maps - low) / jnp.maximum(high - low, 1e-12)
    return jnp.argmax(jnp.where(high > 0, stretched, 0.0), axis=-1)


def region_similarity(truth: np.ndarray, predicted: np.ndarray, *, void: np.ndarray | None = None) -> float:
    """Returns J, the intersection over union of two bool masks `(height, width)`; 1 when both are empty.

    Args:
      void: bool `(height, width)`, pixels that do not count.
    """
    truth, predicted = _without_void(truth, predicted, void)
    union = (truth | predicted).sum()
    return float((truth & predicted).sum() / union) if union else 1.0


def boundary_measure(truth: np.ndarray, predicted: np.ndarray, *, void: np.ndarray | None = None) -> float:
    """Returns F, the harmonic mean of precision and recall of the boundaries of two bool masks `(height, width)`.

    A boundary pixel is right when the other boundary comes as near as ceil(TOLERANCE * diagonal) pixels. Without
    boundary in both masks F is 1, without boundary in one it is 0.
    """
    truth, predicted = _without_void(truth, predicted, void)
    reach = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    true, found = boundary(truth), boundary(predicted)
    if not (true.any() and found.any()):
        return float(not true.any() and not found.any())
    # Dilating by a disk of radius r keeps what is at most r away.
    precision = (found & (distance_transform_edt(~true) <= reach)).sum() / found.sum()
    recall = (true & (distance_transform_edt(~found) <= reach)).sum() / true.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Returns the boundary of a bool mask, one pixel wide: pixels unlike one to the right, below, or right below."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def score_video(truth: np.ndarray, predicted: np.ndarray) -> dict[int, tuple[float, float]]:
    """Scores each object of a video over its frames, the first and the last left out as DAVIS does.

    Args:
      truth: integers `(frames, height, width)`, 0 background, 1, 2, ... objects, 255 void.
      predicted: integers of the same shape.

    Returns:
      (mean J, mean F) of each object of the first frame.

    Raises:
      ValueError: when shapes differ or there are fewer than three frames.
    """
    if truth.shape != predicted.shape or len(truth) < 3:
        raise ValueError(f"tracking: {predicted.shape} predicted for {truth.shape}; both need three frames or more")
    scores = {}
    for label in np.unique(truth[0][(truth[0] > 0) & (truth[0] != VOID)]):
        pairs = [(frame == label, found == label, frame == VOID) for frame, found in zip(truth, predicted, strict=True)]
        regions = [region_similarity(mask, found, void=void) for mask, found, void in pairs[1:-1]]
        borders = [boundary_measure(mask, found, void=void) for mask, found, void in pairs[1:-1]]
        scores[int(label)] = float(np.mean(regions)), float(np.mean(borders))
    return scores


def _without_void(truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if truth.shape != predicted.shape:
        raise ValueError(f"tracking: predicted mask {predicted.shape} for a mask {truth.shape}; resize it first")
    truth, predicted = truth.astype(bool), predicted.astype(bool)
    return (truth, predicted) if void is None else (truth & ~void, predicted & ~void)
