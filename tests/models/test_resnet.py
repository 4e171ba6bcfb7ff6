"""ResNet-50 against torchvision with random weights, in evaluation and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dino_jax import sharding
from dino_jax.models import Extractor, ResNet, build, intermediate_stages
from tests.torch_libraries import library
from tests.torch_weights import assert_close

torch = pytest.importorskip("torch")

FORWARD = 1e-5
EXACT = 1e-9  # in float64


def our_path(name: str) -> tuple[str, ...]:
    """Translates a torchvision name to a path in our trees."""
    renamed = {"weight": "kernel" if "conv" in name or "downsample.0" in name else "scale"}
    renamed |= {"bias": "bias", "running_mean": "mean", "running_var": "var"}
    *module, leaf = name.split(".")
    if module[0].startswith("layer"):
        block = f"stages_{int(module[0][-1]) - 1}_{module[1]}"
        if module[2] == "downsample":
            return block, ("shortcut_conv", "shortcut_norm")[int(module[3])], renamed[leaf]
        return block, module[2].replace("bn", "norm"), renamed[leaf]
    return "stem", {"conv1": "conv", "bn1": "norm"}[module[0]], renamed[leaf]


def variables(network) -> dict:
    """Returns a torchvision network's weights and statistics as ours."""
    out: dict = {"params": {}, "batch_stats": {}}
    for name, tensor in network.state_dict().items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        first, second, leaf = our_path(name)
        array = tensor.numpy().transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.numpy()
        collection = out["batch_stats" if leaf in ("mean", "var") else "params"]
        collection.setdefault(first, {}).setdefault(second, {})[leaf] = array.copy()
    return out


def randomise(network) -> None:
    """Gives every norm a scale, bias and statistics of its own."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Small scales, as those of a trained network, keep sixteen blocks from blowing up.
            torch.nn.init.uniform_(module.weight, 0.2, 0.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)


def maps(network, x):
    """Runs a torchvision network up to its pooling; returns the four stages' maps, channels last."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    out = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        out.append(x.detach().numpy().transpose(0, 2, 3, 1))
    return out


@pytest.fixture(scope="module")
def torchvision():
    return library("torchvision")


@pytest.fixture(scope="module")
def reference(torchvision):
    network = torchvision.models.resnet50(weights=None)
    randomise(network)
    return network


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 70, 96, 3)).astype(np.float32)


def to_torch(images: np.ndarray):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def test_equals_torchvision(reference, images):
    """Also in its intermediate maps, and for a height that is no multiple of any stride."""
    model = Extractor("dino_resnet50", build("dino_resnet50"), **variables(reference))
    with torch.no_grad():
        expected = maps(reference.eval(), to_torch(images))
    run = jax.jit(lambda m, x: (m(x), m.intermediate(x, [0, 1, 2, 3])))
    out, stages = run(model, images)
    assert_close(out["cls"], expected[-1].mean((1, 2)), relative=FORWARD, name="cls")
    assert out["registers"].shape == (2, 0, 2048)
    for index, stage in enumerate([*stages, out]):
        assert_close(stage["patches"], expected[min(index, 3)], relative=FORWARD, name=f"stage {index}")


def test_training_equals_torchvision(torchvision, images):
    """Global, then local crops: each normalised by itself, each moving the running statistics, as in DINO.

    In float64: in float32 some activations fall on the other side of a ReLU: torch's own gradients are off by up to
    5e-3 of their scale.
    """
    network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    randomise(network)
    network.fc = torch.nn.Identity()
    network.double()
    ours = variables(network)
    model = ResNet(depths=(1, 1, 1, 1), channels=64, in_channels=3, dtype=jnp.float64)
    images = images[:, :48, :64].astype(np.float64)
    groups = {"global": images, "local": images[:, :40, :32] * 2 + 1}
    weight = np.random.default_rng(1).normal(size=(2, 2048))

    def run(params, stats):
        def scalar(p):
            out, changed = model.apply({"params": p, "batch_stats": stats}, groups, train=True, mutable=["batch_stats"])
            return sum(jnp.sum(out[name]["cls"] * weight) for name in groups), (out, changed["batch_stats"])

        return jax.value_and_grad(scalar, has_aux=True)(params)

    with jax.enable_x64(True):
        (_, (out, stats)), grads = jax.jit(run)(ours["params"], ours["batch_stats"])
        out, stats, grads = jax.tree.map(np.asarray, (out, stats, grads))
    network.train()
    total = 0.0
    for name, group in groups.items():
        features = network(to_torch(group))
        assert_close(out[name]["cls"], features.detach(), relative=EXACT, name=name)
        total = total + (features * torch.from_numpy(weight)).sum()
    total.backward()
    after = variables(network)["batch_stats"]
    for path, value in flat(after).items():
        assert_close(flat(stats)[path], value, relative=EXACT, name=path)
    for name, parameter in network.named_parameters():
        gradient = parameter.grad.numpy()
        gradient = gradient.transpose(2, 3, 1, 0) if gradient.ndim == 4 else gradient
        assert_close(flat(grads)["/".join(our_path(name))], gradient, relative=EXACT, name=name)


def flat(tree) -> dict:
    return {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def tiny():
    model = ResNet(depths=(1, 1), channels=8, in_channels=3)
    images = jax.random.normal(jax.random.key(0), (4, 16, 24, 3))
    return model, jax.jit(model.init)(jax.random.key(1), {"global": images}), images


def test_initialisation(tiny):
    """Statistics begin at those of a unit normal; kernels are Kaiming's: variance 2 / (outputs of a position)."""
    model, variables, _ = tiny
    assert set(variables) == {"params", "batch_stats"}
    assert (model.width, model.patch_size, model.grid((17, 24)), model.grid((17, 24), 0)) == (64, 8, (3, 3), (5, 6))
    for path, leaf in flat(variables["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, float(path.endswith("var")))
    kernel = variables["params"]["stages_1_0"]["conv2"]["kernel"]
    assert kernel.std() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.05)


def test_training_without_mutable_statistics_leaves_them(tiny):
    model, variables, images = tiny
    out = jax.jit(lambda params, x: model.apply({"params": params}, {"global": x}, train=True))
    kept = jax.jit(lambda both, x: model.apply(both, {"global": x}, train=True, mutable=["batch_stats"])[0])
    found, expected = out(variables["params"], images), kept(variables, images)
    np.testing.assert_allclose(found["global"]["cls"], expected["global"]["cls"], rtol=1e-6)


def test_evaluation_without_statistics_is_refused(tiny):
    model, variables, images = tiny
    with pytest.raises(ValueError, match="needs running statistics"):
        model.apply({"params": variables["params"]}, {"global": images})


def test_groups_are_independent_and_masks_do_nothing(tiny):
    model, variables, images = tiny
    groups = {"global": images, "local": images[:, :8, :8]}
    apply = jax.jit(lambda x, m=None: model.apply({"params": variables["params"]}, x, m, train=True))
    together, alone = apply(groups, {"global": jnp.ones((4, 6), bool)}), apply({"global": images})
    np.testing.assert_allclose(together["global"]["patches"], alone["global"]["patches"], atol=1e-6)
    assert together["local"]["patches"].shape == (4, 1, 64)


def test_stages_can_be_resized(tiny):
    model, variables, images = tiny
    stats = variables["batch_stats"]
    first, last = intermediate_stages(model, variables["params"], images, [0, 1], patch_size=8, batch_stats=stats)
    assert (first["patches"].shape, last["patches"].shape) == ((4, 6, 32), (4, 6, 64))


def test_sharding_covers_every_leaf(tiny):
    _, variables, _ = tiny
    sharding.of_state(variables, sharding.make_mesh(devices=jax.devices()[:1]))
