"""Networks by name: the class, the options, and what is said to a name that does not exist."""

import pytest

from dino_jax.models import VARIANTS, ConvNext, ResNet, VisionTransformer, build


@pytest.mark.parametrize("name", VARIANTS)
def test_every_name_builds(name):
    model = build(name, in_channels=5)
    assert model.in_channels == 5
    assert model.width % 8 == 0


def test_classes():
    assert isinstance(build("dinov2_vitg14_reg", drop_path=0.4), VisionTransformer)
    assert isinstance(build("dinov3_convnext_tiny"), ConvNext)
    assert isinstance(build("dino_resnet50"), ResNet)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dinov3_vitl14", {}, "no architecture 'dinov3_vitl14'; did you mean dinov3_vitl16 or dinov2_vitl14"),
        ("vgg", {}, "no architecture 'vgg'; choose one of dino_vits16, "),
        ("dinov3_vitl16", {"droppath": 0.1}, "dinov3_vitl16 has no option 'droppath'; did you mean drop_path"),
        ("dinov3_convnext_tiny", {"drop_path": 0.1}, "dinov3_convnext_tiny has no option 'drop_path'"),
    ],
)
def test_unknown_names_and_options(name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)
