import numpy as np

from dino_jax.pictures.colors import visible


def test_images_of_any_channels_and_bits_are_visible():
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(visible(rgb), rgb)
    for channels in (1, 2, 3, 5):
        deep = np.random.default_rng(0).integers(0, 4096, (64, 64, channels)).astype(np.uint16)
        shown = visible(deep)
        assert shown.shape == (64, 64, 3) and shown.dtype == np.uint8
        first = deep[..., :3] if channels >= 3 else np.repeat(deep[..., :1], 3, axis=2)
        np.testing.assert_allclose(shown, np.minimum(first / np.percentile(first, 99.5), 1) * 255, atol=1)
    assert not visible(np.zeros((4, 4, 1), np.uint16)).any()
    np.testing.assert_allclose(visible(rgb.astype(np.uint16) * 257), rgb, atol=1)  # a full range stays as it is
    film = np.stack([np.full((4, 4, 1), 100, np.uint16), np.full((4, 4, 1), 400, np.uint16)])
    assert visible(film)[:, 0, 0, 0].tolist() == [64, 255]
