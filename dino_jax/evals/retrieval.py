"""Retrieval by cosine similarity: the revisited Oxford and Paris protocol (arXiv 1803.11285), and copy detection."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from dino_jax.evals.features import check_finite, unit

# Which images count and which are ignored, by protocol (arXiv 1803.11285, section 3.2).
PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
RANKS = (1, 5, 10)
COPIES_FOUND = 20  # how far down copy detection looks
BLOCK = 256  # queries whose cosines are in memory at a time


def rankings(queries: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Sorts the database by cosine to each query.

    Args:
      queries: `(queries, dim)`.
      database: `(images, dim)`.

    Returns:
      indices int32 `(queries, images)`, most similar first, the earlier image on a tie.

    Raises:
      ValueError: when dimensions differ, or a feature is not finite.
    """
    queries, database = _unit(queries), _unit(database)
    if queries.shape[1] != database.shape[1]:
        raise ValueError(f"retrieval: queries have {queries.shape[1]} dimensions, the database {database.shape[1]}")
    parts = [
        np.argsort(-(queries[start : start + BLOCK] @ database.T), axis=1, kind="stable").astype(np.int32)
        for start in range(0, len(queries), BLOCK)
    ]
    return np.concatenate(parts)


def _unit(features: np.ndarray) -> np.ndarray:
    """L2-normalises `(n, dim)`; raises ValueError when a feature is not finite."""
    check_finite(features, "retrieval: features")
    return np.asarray(unit(jnp.asarray(features)))


def trapezoidal_ap(ranks: np.ndarray, relevant: int) -> float:
    """Returns the average precision of the Oxford and Paris benchmarks: the area by trapezia, not by rectangles.

    Args:
      ranks: places of the relevant images in the ranking, from 0, ascending, with junk taken out.
      relevant: how many there are.
    """
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float(np.sum(before + after) / (2 * relevant))


def average_precision(ranks: np.ndarray, relevant: int) -> float:
    """Returns the mean of the precision at each relevant image, as scikit-learn does; arguments as above."""
    return float(np.sum((np.arange(len(ranks)) + 1) / (ranks + 1)) / relevant)


def relevant_ranks(ranking: np.ndarray, relevant: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Returns the places of relevant images in a ranking `(images,)` from which the junk was taken."""
    kept = ranking[~np.isin(ranking, junk)]
    return np.flatnonzero(np.isin(kept, relevant))


def landmark_map(ranking: np.ndarray, truth: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Computes mean average precision and mean precision at 1, 5 and 10 by the easy, medium and hard protocols.

    Args:
      ranking: `(queries, images)`, most similar first.
      truth: for each query the indices of "easy", "hard" and "junk" images; all others are irrelevant.

    Returns:
      "<protocol>/map" and "<protocol>/mp<rank>", 0 to 1. Queries without a relevant image do not count; a protocol
      without any query is left out.

    Raises:
      ValueError: when the numbers of queries differ, or no query has any relevant image.
    """
    if len(ranking) != len(truth):
        raise ValueError(f"retrieval: {len(ranking)} rankings for the truth of {len(truth)} queries")
    found: dict[str, float] = {}
    for protocol, (good, ignored) in PROTOCOLS.items():
        scores = [
            _scores(order, _joined(entry, good), _joined(entry, ignored))
            for order, entry in zip(ranking, truth, strict=True)
            if len(_joined(entry, good))
        ]
        if scores:
            means = np.mean(scores, axis=0)
            names = ["map", *(f"mp{rank}" for rank in RANKS)]
            found |= {f"{protocol}/{name}": float(mean) for name, mean in zip(names, means, strict=True)}
    if not found:
        raise ValueError("retrieval: no query has a relevant image; check the ground truth")
    return found


def _joined(entry: Mapping[str, np.ndarray], kinds: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.asarray(entry[kind], int) for kind in kinds])


def _scores(ranking: np.ndarray, good: np.ndarray, ignored: np.ndarray) -> list[float]:
    """Returns the average precision and the precisions at RANKS of one query.

    A precision at rank r is that at the last relevant image where this comes earlier, as the benchmark defines it.
    """
    ranks = relevant_ranks(ranking, good, ignored)
    last = ranks.max(initial=-1) + 1
    precisions = [float(np.sum(ranks < min(rank, last)) / min(rank, last)) for rank in RANKS]
    return [trapezoidal_ap(ranks, len(good)), *precisions]


def copy_detection(copies: np.ndarray, database: np.ndarray, original: np.ndarray) -> dict[str, float]:
    """Computes how well the originals of copies are found among all photographs and distractors (DINO's evaluation).

    Args:
      copies: features of the queries `(copies, dim)`.
      database: features `(images, dim)` of the photographs and then of distractors.
      original: `(copies,)`, the photograph that each copy shows.

    Returns:
      "map": mean over copies of the average precision by trapezia, among the COPIES_FOUND nearest; "micro_ap": average
      precision of all pairs in one ranking, which also asks for one threshold that suits all (DISC21, arXiv
      2106.09672).

    Raises:
      ValueError: when `original` does not name an image of the database for each copy.
    """
    if (
        original.shape != copies.shape[:1]
        or not len(copies)
        or not 0 <= original.min() <= original.max() < len(database)
    ):
        raise ValueError(
            f"copy detection: originals {original.shape} do not fit {len(copies)} copies and {len(database)} images"
        )
    nearest = rankings(copies, database)[:, :COPIES_FOUND]
    precisions = [trapezoidal_ap(np.flatnonzero(found == own), 1) for found, own in zip(nearest, original, strict=True)]
    pairs = np.argsort(-(_unit(copies) @ _unit(database).T), axis=None, kind="stable")
    correct = (original[:, None] == np.arange(len(database))).ravel()[pairs]
    micro = average_precision(np.flatnonzero(correct), len(copies))
    return {"map": float(np.mean(precisions)), "micro_ap": micro}


def whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learns a PCA whitening. (DINO's code takes second moments about 0 in place of the covariance.)

    Args:
      features: `(samples, dim)`.

    Returns:
      mean `(dim,)` and projection `(dim, those that vary)`: `(x - mean) @ projection` has unit covariance.

    Raises:
      ValueError: for fewer than two samples.
    """
    if len(features) < 2:
        raise ValueError(f"whitening: {len(features)} samples do not vary; give more images")
    x = np.asarray(features, np.float32)
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((x - mean).T).reshape(x.shape[1], x.shape[1]))
    varying = np.flatnonzero(values > 1e-6 * values[-1])[::-1]
    return mean, (vectors[:, varying] / np.sqrt(values[varying])).astype(np.float32)


def whiten(features: np.ndarray, mean: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Applies what `whitening` learnt to `(n, dim)`."""
    return (np.asarray(features, np.float32) - mean) @ projection
