import jax
import pytest

import dino_jax
from dino_jax import gallery, sharding
from dino_jax.data.sources import open_path
from tests.data.images import encode, photograph
from tests.tiny_model import tiny_model


def convolutional():
    return dino_jax.load("random:dino_resnet50", depths=(1, 1), channels=4)[0]


@pytest.mark.parametrize(
    ("make", "names"),
    [(tiny_model, ["pca.png", "attention.png", "cosine.png"]), (convolutional, ["pca.png", "cosine.png"])],
)
def test_a_network_without_attention_has_no_picture_of_it(make, names, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encode(photograph(seed=number)))
    model, mesh = make(), sharding.make_mesh(devices=jax.devices()[:1])
    models = {"student": model, "EMA teacher": model}
    drawn = gallery.draw_features(models, open_path(tmp_path), mesh, tmp_path / "pictures", size=16)
    assert [path.name for path in drawn] == names
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(names)
