import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax.evals import patch_head
from dino_jax.evals.patch_head import Schedule


def random_batch(seed=0, *, classes=3):
    random = np.random.default_rng(seed)
    patches = random.normal(2, 3, (4, 3, 5, 6)).astype(np.float32)
    masks = random.integers(0, classes, (4, 6, 10)).astype(np.uint8)
    masks[:, :2, :2] = 255
    return patches, masks


def test_steps_are_those_of_torch():
    """Batch norm, 1x1 convolution, upsampling, loss and AdamW, over several steps and in evaluation."""
    torch = pytest.importorskip("torch")
    batches = [random_batch(seed) for seed in range(6)]
    schedule = Schedule(steps=6, learning_rate=0.05, weight_decay=0.1)
    head, losses = patch_head.fit_head(batches, dim=6, outputs=3, loss=patch_head.cross_entropy, schedule=schedule)
    start = patch_head.init_head(6, 3)
    norm, linear = torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 3, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(np.asarray(start.kernel).T[:, :, None, None]))
        linear.bias.zero_()
    optimizer = torch.optim.AdamW([*norm.parameters(), *linear.parameters()], lr=1.0, weight_decay=0.1)
    for step, (patches, masks) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 if step == 0 else 1 - (step - 1) / 5)
        maps = linear(norm(torch.tensor(patches).permute(0, 3, 1, 2)))
        maps = torch.nn.functional.interpolate(maps, masks.shape[1:], mode="bilinear", align_corners=False)
        loss = torch.nn.functional.cross_entropy(maps, torch.tensor(masks).long(), ignore_index=255)
        assert losses[step] == pytest.approx(float(loss.detach()), abs=2e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    norm.eval()
    expected = linear(norm(torch.tensor(batches[0][0]).permute(0, 3, 1, 2))).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(patch_head.apply_head(head, batches[0][0]), expected, atol=2e-3)


def test_a_planted_class_is_learnt():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(3, 6))

    def batches():
        while True:
            masks = random.integers(0, 3, (4, 3, 5))
            yield np.eye(3)[masks] @ mixing, masks

    head, losses = patch_head.fit_head(
        batches(), dim=6, outputs=3, loss=patch_head.cross_entropy, schedule=Schedule(steps=150, learning_rate=0.05)
    )
    masks = random.integers(0, 3, (4, 3, 5))
    np.testing.assert_array_equal(jnp.argmax(patch_head.apply_head(head, np.eye(3)[masks] @ mixing), -1), masks)
    assert losses[-1] < 0.1 * losses[0]


def test_masks_that_are_ignored_give_no_loss():
    patches, masks = random_batch()
    logits = jnp.asarray(patches[..., :3])
    assert float(patch_head.cross_entropy(logits, jnp.full_like(masks, 255))) == 0
    gradient = jax.jit(jax.grad(patch_head.cross_entropy))(logits, jnp.full_like(masks, 255))
    assert np.isfinite(gradient).all()


def test_depth_is_the_mean_of_the_bins():
    outputs = jnp.array([-5.0, 0.9, 0.4])
    weights = np.array([0.1, 1.0, 0.5])
    expected = (weights * [1, 2, 3]).sum() / weights.sum()
    assert float(patch_head.depth_from_bins(outputs, low=1, high=3)) == pytest.approx(expected)


def test_scale_invariant_loss_by_hand():
    outputs = jnp.zeros((1, 1, 3, 2))  # every bin alike: depth 2 between 1 and 3
    depths = jnp.array([[[1.0, 4.0, 0.0]]])
    differences = np.log(2 / np.array([1.0, 4.0]))
    found = patch_head.scale_invariant_log_loss(outputs, depths, low=1, high=3)
    expected = differences.var() + 0.15 * differences.mean() ** 2
    assert float(found) == pytest.approx(np.sqrt(expected), abs=1e-5)


def test_a_planted_depth_is_learnt():
    random = np.random.default_rng(0)
    direction = random.normal(size=6)

    def batch():
        depths = random.uniform(1, 5, (8, 4, 4))
        return depths[..., None] * direction + 0.01 * random.normal(size=(8, 4, 4, 6)), depths

    loss = functools.partial(patch_head.scale_invariant_log_loss, low=0.001, high=10.0)
    head, _ = patch_head.fit_head(
        (batch() for _ in itertools.count()), dim=6, outputs=64, loss=loss, schedule=Schedule(300, 0.03)
    )
    patches, depths = batch()
    found = patch_head.depth_from_bins(patch_head.apply_head(head, patches), low=0.001, high=10.0)
    assert np.mean(abs(found - depths) / depths) < 0.05


def test_a_loss_that_is_not_finite_stops_soon():
    patches, masks = random_batch()
    taken = []

    def batches():
        for number in range(1, 1000):
            taken.append(number)
            yield (patches * (np.nan if number > 3 else 1)), masks

    with pytest.raises(FloatingPointError, match="not finite from step 4 on"):
        patch_head.fit_head(batches(), dim=6, outputs=3, loss=patch_head.cross_entropy, schedule=Schedule(1000))
    assert len(taken) == patch_head.REPORT_EVERY


def test_a_loss_that_is_not_finite_stops():
    patches, masks = random_batch()
    with pytest.raises(FloatingPointError, match="not finite from step 1 on"):
        patch_head.fit_head(
            [(patches * np.nan, masks)], dim=6, outputs=3, loss=patch_head.cross_entropy, schedule=Schedule(1)
        )
