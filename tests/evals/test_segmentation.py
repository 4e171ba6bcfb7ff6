import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import jaccard_score

from dino_jax.evals import segmentation
from tests.torch_libraries import library

IGNORE = 255


def random_masks(seed, *, images=3, size=(16, 24), classes=4):
    """Masks of rectangles of random classes, with some ignored pixels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes, (images, size[0] // 4, size[1] // 4))
    masks = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    masks[:, 0, :3] = IGNORE
    return masks


def planted_patches(masks, *, patch=4, classes=4):
    """Features that are the one-hot class of their patch, mixed by a fixed invertible matrix."""
    shares, _ = segmentation.class_shares(masks, tuple(side // patch for side in masks.shape[1:]), classes=classes)
    return shares @ np.random.default_rng(0).normal(size=(classes, classes)).astype(np.float32) + 3.0


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("judge", ["torchmetrics", "scikit-learn"])
def test_mean_iou_is_that_of_others(judge, absent):
    random = np.random.default_rng(1)
    truth = random.integers(0, 3 if absent else 5, (4, 20, 30))
    predicted = random.integers(0, 3 if absent else 5, (4, 20, 30))
    truth[random.random(truth.shape) < 0.1] = IGNORE
    counts = sum(segmentation.confusion(t, p, classes=5) for t, p in zip(truth, predicted, strict=True))
    if judge == "torchmetrics":
        torch, metrics = library("torch"), library("torchmetrics").classification
        metric = metrics.MulticlassJaccardIndex(num_classes=5, ignore_index=IGNORE)
        expected = float(metric(torch.tensor(predicted), torch.tensor(truth)))
    else:
        expected = jaccard_score(truth[truth != IGNORE], predicted[truth != IGNORE], average="macro")
    assert segmentation.mean_iou(counts) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(segmentation.class_ious(counts)).sum() == (2 if absent else 0)


def test_iou_by_hand():
    truth = np.array([[0, 0, 1, 1, IGNORE]])
    predicted = np.array([[0, 1, 1, 1, 0]])
    counts = segmentation.confusion(truth, predicted, classes=2)
    np.testing.assert_array_equal(counts, [[1, 1], [0, 2]])
    np.testing.assert_allclose(segmentation.class_ious(counts), [1 / 2, 2 / 3])
    assert segmentation.pixel_accuracy(counts) == 3 / 4


def test_class_shares_by_hand():
    masks = np.array([[[0, 0, 1, IGNORE], [0, 1, IGNORE, IGNORE]]])
    shares, labelled = segmentation.class_shares(masks, (1, 2), classes=2)
    np.testing.assert_allclose(shares, [[[[3 / 4, 1 / 4], [0, 1]]]])
    np.testing.assert_allclose(labelled, [[[1, 1 / 4]]])


def test_probe_is_the_linear_discriminant_of_scikit_learn(monkeypatch):
    """On masks whose patches are of one class each; scikit-learn's prior is the frequency itself."""
    random = np.random.default_rng(2)
    coarse = random.integers(0, 4, (5, 4, 6)) // random.integers(1, 3, (5, 4, 6))
    masks = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    patches = (random.normal(size=(5, 4, 6, 3)) + coarse[..., None] * [1, 0, 2]) * [1, 10, 0.1] + [0, 100, 0]
    monkeypatch.setattr(segmentation, "BLOCK", 2)
    weights, bias = segmentation.linear_patch_probe(patches.astype(np.float32), masks, classes=4, ridge=0)
    judge = LinearDiscriminantAnalysis(solver="lsqr").fit(patches.reshape(-1, 3), coarse.ravel())
    expected = judge.decision_function(patches.reshape(-1, 3)) - (1 - segmentation.PRIOR) * np.log(judge.priors_)
    found = patches.reshape(-1, 3) @ weights + bias
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], atol=2e-3)


def test_mixed_patches_are_the_mean_of_weighted_samples():
    """A patch of which 3/4 are labelled, 1/4 of one class and 1/2 of the other, is two samples of these weights."""
    patches = np.random.default_rng(3).normal(size=(1, 1, 12, 2)).astype(np.float32)
    mask = np.array([[0, 1], [1, IGNORE]], np.uint8)
    masks = np.tile(np.concatenate([mask, 1 - mask % 2, mask], axis=1), (1, 4))[None]
    weights, _ = segmentation.linear_patch_probe(patches, masks, classes=2, ridge=0.1)
    shares, labelled = segmentation.class_shares(masks, (1, 12), classes=2)
    counts = (shares * labelled[..., None]).reshape(12, 2).astype(np.float64)
    x = patches.reshape(12, 2).astype(np.float64)
    means = (counts.T @ x) / counts.sum(axis=0)[:, None]
    spread = (
        sum(counts[i, c] * np.outer(x[i] - means[c], x[i] - means[c]) for i in range(12) for c in range(2))
        / counts.sum()
    )
    mean = counts.sum(axis=1) @ x / counts.sum()
    variance = counts.sum(axis=1) @ (x - mean) ** 2 / counts.sum()
    direction = np.linalg.solve(spread + 0.1 * np.diag(variance), means[1] - means[0])
    np.testing.assert_allclose(weights[:, 1] - weights[:, 0], direction, rtol=1e-4)


def test_classes_never_seen_are_never_predicted():
    masks = random_masks(8)
    weights, bias = segmentation.linear_patch_probe(planted_patches(masks), masks, classes=6)
    assert segmentation.predict_masks(planted_patches(masks), weights, bias, size=(16, 24)).max() < 4


def test_features_that_know_the_class_score_all():
    train, test = random_masks(3), random_masks(4, images=20)  # more than a block
    score = segmentation.quick_miou(planted_patches(train), train, planted_patches(test), test, classes=4)
    # Bilinear maps blur borders between patches, so exact agreement is asked of the patches' centres only.
    weights, bias = segmentation.linear_patch_probe(planted_patches(train), train, classes=4, ridge=1e-6)
    coarse = segmentation.predict_masks(planted_patches(test), weights, bias, size=(4, 6))
    np.testing.assert_array_equal(coarse, test[:, 2::4, 2::4])
    assert score > 0.7


def test_uniform_masks_score_exactly_one():
    """Where borders of classes are borders of images, nothing is blurred."""
    masks = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None], (4, 16, 24))
    patches = planted_patches(masks)
    assert segmentation.quick_miou(patches, masks, patches, masks, classes=4) == 1.0


def test_constant_features_score_the_commonest_class():
    masks = random_masks(5)
    patches = np.ones((3, 4, 6, 8), np.float32)
    score = segmentation.quick_miou(patches, masks, patches, masks, classes=4)
    share = np.bincount(masks[masks != IGNORE]).max() / (masks != IGNORE).sum()
    assert score == pytest.approx(share / 4)


def test_upsampling_is_that_of_torch():
    torch = library("torch")
    maps = np.random.default_rng(6).normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(maps).permute(0, 3, 1, 2), (12, 17), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(segmentation.upsample(maps, (12, 17)), expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": 3}, "label 3, but there are 3 classes"),
        ({"train_masks": np.full((3, 16, 24), IGNORE, np.uint8)}, "every pixel of the training masks is ignored"),
        ({"test_masks": np.full((3, 16, 24), IGNORE, np.uint8)}, "every pixel of the masks is ignored"),
        ({"test_masks": np.zeros((2, 16, 24), np.uint8)}, "test patches"),
        ({"train_patches": np.full((3, 4, 6, 4), np.nan)}, "not all finite"),
        ({"test_patches": np.ones((3, 4, 6, 5), np.float32)}, "train has 4 dimensions, test 5"),
    ],
)
def test_bad_input_is_one_line(change, message):
    masks = random_masks(7)
    patches = planted_patches(masks)
    arguments = {"train_patches": patches, "train_masks": masks, "test_patches": patches, "test_masks": masks}
    with pytest.raises(ValueError, match=message) as error:
        segmentation.quick_miou(**(arguments | {"classes": 4} | change))
    assert "\n" not in str(error.value)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"predicted map \(2, 3\) for a mask \(3, 2\)"):
        segmentation.confusion(np.zeros((3, 2), int), np.zeros((2, 3), int), classes=2)
