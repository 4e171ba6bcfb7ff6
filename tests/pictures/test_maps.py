import numpy as np
import pytest
from PIL import Image
from skimage import data

from dino_jax import pictures


@pytest.fixture(scope="module")
def photographs():
    """Eight windows of real photographs `(8, 96, 96, 3)`."""
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    return np.stack([source[top : top + 96, 100:196] for source in sources for top in (40, 150)])


def features(images, grid):
    """Mean colours of grid cells and products of them: features with structure, `(images, grid, grid, 9)`."""
    small = np.stack([np.asarray(Image.fromarray(i).resize((grid, grid), Image.Resampling.BOX)) for i in images]) / 255
    return np.concatenate([small, small**2, small * np.roll(small, 1, axis=-1)], axis=-1)


def check_png(path, least_width):
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width >= least_width
        pixels = np.asarray(picture.convert("RGB"), np.uint32)
    assert len(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1], np.uint32))) > 500
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


@pytest.mark.parametrize(("count", "grid"), [(1, 64), (2, 12), (8, 6)])
def test_every_number_of_images_and_grid_is_drawn(photographs, tmp_path, count, grid):
    images = photographs[:count]
    names = [f"window {i}" for i in range(count)]
    maps = features(images, grid)
    pca, attention, cosine = (tmp_path / name / "picture.png" for name in ("pca", "attention", "cosine"))
    assert pictures.pca(images, maps, pca, names=names) == pca
    weights = np.abs(maps[..., :3]).transpose(0, 3, 1, 2)
    assert pictures.attention(images, weights, attention, names=names) == attention
    networks = {"student": maps, "Gram teacher": features(images, 24)}
    assert pictures.cosine_maps(images, networks, cosine) == cosine
    for path in (pca, attention, cosine):
        check_png(path, 600)


def test_wide_images_keep_their_aspect(photographs, tmp_path):
    images = photographs[:1, :48]
    path = pictures.pca(images, features(photographs[:1], 12)[:, :6], tmp_path / "wide.png")
    with Image.open(path) as picture:
        assert picture.width > 2 * picture.height


@pytest.mark.parametrize("maps", [np.zeros((2, 3, 3, 1)), np.ones((2, 3, 3, 8)), np.ones((2, 1, 1, 8))])
def test_collapsed_or_thin_features_are_drawn(photographs, tmp_path, maps):
    assert pictures.pca(photographs[:2], maps, tmp_path / "flat.png").exists()


def test_what_cannot_be_drawn_is_refused(photographs, tmp_path):
    images, maps = photographs[:2], features(photographs[:2], 6)
    path = tmp_path / "no.png"
    with pytest.raises(ValueError, match="uint8"):
        pictures.pca(images / 255, maps, path)
    with pytest.raises(ValueError, match="one entry for each of 2 images"):
        pictures.pca(images, maps[:1], path)
    with pytest.raises(ValueError, match="not all finite"):
        pictures.cosine_maps(images, {"student": np.where(maps > 0.5, np.nan, maps)}, path)
    assert not path.exists()
