import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from dino_jax.evals.retrieval import (
    average_precision,
    copy_detection,
    landmark_map,
    rankings,
    trapezoidal_ap,
    whiten,
    whitening,
)


def entry(easy=(), hard=(), junk=()):
    return {name: np.array(ids, int) for name, ids in (("easy", easy), ("hard", hard), ("junk", junk))}


def test_trapezoidal_ap_by_hand():
    assert trapezoidal_ap(np.array([0, 1]), 2) == 1
    # One relevant image at place 1: precision 0 before it and 1/2 after, their mean over one step of recall.
    assert trapezoidal_ap(np.array([1]), 1) == 0.25
    # At places 0 and 2 of three: (1 + 1) / 2 and (1/2 + 2/3) / 2, each for half of the recall.
    assert trapezoidal_ap(np.array([0, 2]), 2) == pytest.approx(0.5 * 1 + 0.5 * (0.5 + 2 / 3) / 2)
    assert trapezoidal_ap(np.array([], int), 2) == 0


def test_average_precision_equals_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(5):
        truth, scores = rng.random(30) < 0.3, rng.normal(size=30)
        ranks = np.flatnonzero(truth[np.argsort(-scores)])
        assert average_precision(ranks, int(truth.sum())) == pytest.approx(average_precision_score(truth, scores))


def area_by_scikit_learn(truth):
    """Returns the area under precision over recall by trapezia, of relevance `(images,)` in the order of a ranking."""
    precision, recall, _ = precision_recall_curve(truth, -np.arange(len(truth)))
    return auc(recall, precision)


def test_trapezoidal_ap_equals_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.permutation(np.arange(30) < rng.integers(1, 30))
        expected = area_by_scikit_learn(truth)
        assert trapezoidal_ap(np.flatnonzero(truth), truth.sum()) == pytest.approx(expected, abs=1e-12)


def test_landmark_map_equals_scikit_learn_without_what_is_ignored():
    rng = np.random.default_rng(0)
    ranking = np.stack([rng.permutation(40) for _ in range(6)])
    kinds = rng.choice(["easy", "hard", "junk", "irrelevant"], size=ranking.shape, p=[0.15, 0.15, 0.2, 0.5])
    truth = [{kind: np.flatnonzero(row == kind) for kind in ("easy", "hard", "junk")} for row in kinds]
    found = landmark_map(ranking, truth)
    ordered = np.take_along_axis(kinds, ranking, axis=1)
    relevant = {"easy": ["easy"], "medium": ["easy", "hard"], "hard": ["hard"]}
    for protocol, good in relevant.items():
        counted = [row[np.isin(row, [*good, "irrelevant"])] for row in ordered]
        expected = np.mean([area_by_scikit_learn(np.isin(row, good)) for row in counted])
        assert found[f"{protocol}/map"] == pytest.approx(expected, abs=1e-12)


def test_protocols_by_hand():
    """Ranking 0 1 2 3 4: 0 is junk, 1 hard, 2 easy, 3 irrelevant, 4 easy."""
    found = landmark_map(np.arange(5)[None], [entry(easy=(2, 4), hard=(1,), junk=(0,))])
    # Easy: 0 and 1 are taken out, leaving easy, irrelevant, easy.
    assert found["easy/map"] == pytest.approx(trapezoidal_ap(np.array([0, 2]), 2))
    # Medium: only 0 is taken out, leaving hard, easy, irrelevant, easy.
    assert found["medium/map"] == pytest.approx(trapezoidal_ap(np.array([0, 1, 3]), 3))
    # Hard: 0, 2 and 4 are taken out, leaving hard, irrelevant.
    assert found["hard/map"] == 1
    assert found["medium/mp1"] == 1
    assert found["medium/mp5"] == pytest.approx(3 / 4)  # the last relevant one is at place 4
    assert found["easy/mp5"] == pytest.approx(2 / 3)


def test_queries_without_relevant_images_do_not_count():
    ranking = np.array([[0, 1], [1, 0]])
    found = landmark_map(ranking, [entry(easy=(0,)), entry(hard=(0,))])
    assert found["easy/map"] == 1
    assert found["hard/map"] == 0.25
    assert found["medium/map"] == pytest.approx(0.625)
    assert "hard/map" not in landmark_map(ranking, [entry(easy=(0,)), entry(easy=(1,))])
    with pytest.raises(ValueError, match="no query has a relevant image"):
        landmark_map(ranking, [entry(), entry(junk=(0,))])
    with pytest.raises(ValueError, match="2 rankings for the truth of 1 queries"):
        landmark_map(ranking, [entry(easy=(0,))])


def test_rankings_are_by_cosine_and_ties_by_position():
    database = np.array([[1.0, 0.0], [2.0, 2.0], [5.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(rankings(np.array([[1.0, 0.0], [0.0, 3.0]]), database), [[0, 2, 1, 3], [3, 1, 0, 2]])
    with pytest.raises(ValueError, match="not all finite"):
        rankings(database * np.nan, database)
    with pytest.raises(ValueError, match="queries have 1 dimensions, the database 2"):
        rankings(database[:, :1], database)


def test_planted_answers():
    """Places are directions: the right ones score 100 %, random features chance (a hand count of it)."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(20), 10)
    truth = [entry(easy=np.flatnonzero(place == p)[:5], hard=np.flatnonzero(place == p)[5:]) for p in range(20)]
    right = landmark_map(rankings(np.eye(20), np.eye(20)[place] + 0.01 * rng.normal(size=(200, 20))), truth)
    assert set(right.values()) == {1.0}
    blind = landmark_map(rankings(rng.normal(size=(20, 64)), rng.normal(size=(200, 64))), truth)
    assert blind["medium/map"] == pytest.approx(0.05, abs=0.05)
    copies = np.eye(20)[place] + 0.01 * rng.normal(size=(200, 20))
    perfect = copy_detection(copies, np.eye(20), place)
    assert perfect == {"map": 1.0, "micro_ap": 1.0}
    chance = copy_detection(rng.normal(size=(200, 64)), rng.normal(size=(500, 64)), place)
    # One place in 500, at which the area is 1 at the first and half of 1 / rank from the second to the 20th.
    assert chance["map"] == pytest.approx((1 + sum(0.5 / rank for rank in range(2, 21))) / 500, abs=0.005)
    assert chance["micro_ap"] == pytest.approx(1 / 500, abs=0.01)


def test_copy_detection_by_hand():
    """Originals 0 to 3 and 21 distractors; the copies find their originals at places 1, 2 and 22."""
    database = np.eye(25)
    ahead = [1.0] * 21
    copies = np.zeros((3, 25))
    copies[0, 0] = 1
    copies[1, [1, 2]] = 0.5, 0.6
    copies[2, 3], copies[2, 4:] = 0.1, ahead
    found = copy_detection(copies, database, np.array([0, 1, 3]))
    assert found["map"] == pytest.approx((1 + 0.25 + 0) / 3)
    unit = copies / np.linalg.norm(copies, axis=1, keepdims=True)
    truth = np.array([0, 1, 3])[:, None] == np.arange(25)
    # scikit-learn takes equal scores as one; ours are in the order of the database.
    scores = (unit - 1e-9 * np.arange(75).reshape(3, 25)).ravel()
    assert found["micro_ap"] == pytest.approx(average_precision_score(truth.ravel(), scores))
    with pytest.raises(ValueError, match="do not fit"):
        copy_detection(copies, database, np.array([0, 1, 25]))
    with pytest.raises(ValueError, match="do not fit"):
        copy_detection(copies, database, np.array([0, 1]))


def test_whitening_gives_unit_covariance():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3
    white = whiten(features, *whitening(features))
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=1e-3)
    with pytest.raises(ValueError, match="1 samples do not vary"):
        whitening(features[:1])
