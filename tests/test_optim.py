import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dino_jax import optim
from tests.conftest import golden_parts, golden_runs
from tests.torch_weights import assert_trees_close, convnext_name, convnext_tree, to_path, tree, unfused


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small_params(seed=0):
    """Two modules: a backbone of three stacked blocks, and a head."""
    shapes = {
        "backbone": {
            "cls_token": (4,),
            "patch_embed": {"kernel": (2, 2, 3, 4), "bias": (4,)},
            "blocks": {"norm1": {"scale": (3, 4)}, "mlp": {"fc1": {"kernel": (3, 4, 8)}}, "ls1": {"gamma": (3, 4)}},
            "norm": {"scale": (4,), "bias": (4,)},
        },
        "dino_head": {"mlp_0": {"kernel": (4, 5)}, "prototypes": {"kernel": (5, 6)}},
    }
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


def trees(params, *, layer_decay=0.5, patch_embed_multiplier=0.2):
    """The multipliers, and the two trees that an update needs besides the rates made of them."""
    return {
        "lr_multipliers": optim.lr_multipliers(
            params, layer_decay=layer_decay, patch_embed_multiplier=patch_embed_multiplier
        ),
        "decay_mask": optim.decay_mask(params),
        "last_layer": optim.is_last_layer(params),
    }


def test_multipliers_by_hand():
    multipliers = optim.lr_multipliers(small_params(), layer_decay=0.5, patch_embed_multiplier=0.2)
    backbone, head = multipliers["backbone"], multipliers["dino_head"]
    assert backbone["cls_token"] == 0.5**4
    np.testing.assert_allclose(backbone["patch_embed"]["bias"], 0.5**4 * 0.2)
    kernel = backbone["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (3, 1, 1)
    assert kernel.ravel().tolist() == [0.125, 0.25, 0.5]
    assert backbone["norm"]["scale"] == head["prototypes"]["kernel"] == 1


def test_multipliers_of_modules_without_blocks():
    params = {"backbone": {"stem": {"kernel": np.zeros((3, 4))}, "stages_0": {"kernel": np.zeros((2, 4))}}}
    multipliers = optim.lr_multipliers(params, layer_decay=0.5, patch_embed_multiplier=0.2)
    assert jax.tree.leaves(multipliers) == [1, 1]


def test_trees_broadcast_to_abstract_parameters():
    params = jax.eval_shape(small_params)
    for leaves in trees(params).values():
        jax.tree.map(lambda leaf, p: np.broadcast_to(leaf, p.shape), leaves, params)


def test_clip_by_hand():
    grads = {"a": {"x": np.array([3.0]), "y": np.array([[4.0]])}, "b": {"x": np.array([0.3, 0.4])}}
    clipped, norms = jax.jit(optim.clip_by_module)(grads, 1.0)
    np.testing.assert_allclose([norms["a"], norms["b"]], [5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(clipped["a"]["y"], [[0.8]], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"]["x"], [0.3, 0.4], rtol=1e-6)


def test_clip_keeps_trouble_in_its_module():
    grads = {"a": {"x": np.array([np.nan, 1.0])}, "b": {"x": np.array([3.0])}}
    clipped, norms = optim.clip_by_module(grads, 1.0)
    assert np.isnan(norms["a"])
    assert np.isnan(clipped["a"]["x"]).all()
    np.testing.assert_allclose(clipped["b"]["x"], [1.0], rtol=1e-6)


def test_clip_by_tensor_takes_each_block_by_its_own_norm():
    grads = {
        "backbone": {
            "blocks": {"bias": np.array([[3.0, 4.0], [0.3, 0.4]], np.float32)},
            "stages_0": {"blocks": {"bias": np.array([[3.0, 4.0], [0.3, 0.4]], np.float32)}},
            "norm": {"bias": np.array([6.0, 8.0], np.float32)},
        }
    }
    clipped, norms = jax.jit(optim.clip_by_tensor)(grads, 1.0)
    for stack in (clipped["backbone"]["blocks"], clipped["backbone"]["stages_0"]["blocks"]):
        np.testing.assert_allclose(stack["bias"], [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(clipped["backbone"]["norm"]["bias"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(norms["backbone"], np.sqrt(2 * (25 + 0.25) + 100), rtol=1e-6)


def reference_adamw(params, all_grads, *, b1, b2, rates, decays):
    """AdamW of one array in float64, each step with its learning rate and weight decay."""
    p, m, v = np.array(params, np.float64), 0.0, 0.0
    for step, (grads, rate, decay) in enumerate(zip(all_grads, rates, decays, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * grads, b2 * v + (1 - b2) * np.square(grads, dtype=np.float64)
        p = p * (1 - rate * decay)
        p -= rate * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + 1e-8)
    return p, m, v


def run(optimizer, params, all_grads, *, rates, decays, last_rates=None, rests=None, backbone_rates=None):
    """Takes steps; `rests` says for each whether the last layers rest."""
    start, extra = params, {"decay_mask": optim.decay_mask(params), "last_layer": optim.is_last_layer(params)}

    @jax.jit
    def step(params, state, grads, lr, last_layer_lr, backbone_lr, weight_decay, rests):
        scheduled = {"lr": lr, "last_layer_lr": last_layer_lr, "backbone_lr": backbone_lr}
        updates, state = optimizer.update(
            grads,
            state,
            params,
            rates=optim.rates(params, layer_decay=0.5, patch_embed_multiplier=0.2, **scheduled),
            weight_decay=weight_decay,
            last_layer_rests=rests,
            **extra,
        )
        return optax.apply_updates(params, updates), state

    state = optimizer.init(start)
    scheduled = (rates, last_rates or rates, backbone_rates or rates, decays, rests or [0.0] * len(rates))
    for grads, *scalars in zip(all_grads, *scheduled, strict=True):
        params, state = step(params, state, grads, *scalars)
    return params, state


def run_adamw(params, all_grads, **options):
    return run(optim.adamw(0.9, 0.999), params, all_grads, **options)


def test_adamw_against_numpy():
    params, all_grads = small_params(), [small_params(seed) for seed in (1, 2, 3, 4)]
    rates, last_rates, decays = [0.1, 0.2, 0.1, 0.05], [0, 0, 0.3, 0.1], [0.04, 0.1, 0.2, 0.4]
    out, state = run_adamw(params, all_grads, rates=rates, last_rates=last_rates, decays=decays)

    def check(p, multiplier, decayed, last, actual, mu, nu, *grads):
        multiplier = np.broadcast_to(multiplier, p.shape)
        scheduled = last_rates if last else rates
        expected = reference_adamw(
            p,
            grads,
            b1=0.9,
            b2=0.999,
            rates=[rate * multiplier for rate in scheduled],
            decays=np.array(decays) * decayed,
        )
        for ours, theirs in zip((actual, mu, nu), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=3e-7)

    jax.tree.map(check, params, *trees(params).values(), out, state.mu, state.nu, *all_grads)


def test_without_moments_the_update_is_the_sign_of_the_gradient():
    params, grads = {"dino_head": {"bias": np.array([1.0, 2.0])}}, {"dino_head": {"bias": np.array([3.0, -4.0])}}
    out, _ = run(optim.adamw(0.0, 0.0), params, [grads], rates=[0.1], decays=[0.0])
    np.testing.assert_allclose(out["dino_head"]["bias"], [0.9, 2.1], rtol=1e-6)


def test_frozen_last_layer_rests_while_its_moments_advance():
    params, grads = small_params(), small_params(1)
    out, state = run_adamw(params, [grads], rates=[0.1], last_rates=[0.0], decays=[0.4])
    assert (out["dino_head"]["prototypes"]["kernel"] == params["dino_head"]["prototypes"]["kernel"]).all()
    assert (out["dino_head"]["mlp_0"]["kernel"] != params["dino_head"]["mlp_0"]["kernel"]).any()
    assert (np.abs(state.mu["dino_head"]["prototypes"]["kernel"]) > 0).all()
    assert state.count == state.last_layer_count == 1


def torch_steps(make, start, all_grads, *, rates, decays, rests):
    """Takes the same steps of one array with an optimizer of PyTorch; a resting parameter has no gradient."""
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = make(torch, [p])
    for grads, rate, decay, rest in zip(all_grads, rates, decays, rests, strict=True):
        optimizer.param_groups[0].update(lr=rate, weight_decay=decay)
        p.grad = None if rest else torch.tensor(grads)
        optimizer.step()
    return p.detach().numpy()


@pytest.mark.parametrize("rests", [[1, 1, 0, 0], [0, 1, 0, 1]])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_against_torch_with_a_resting_last_layer(name, rests):
    """While it rests the last layer is as if it were not there: no update, decay, moment or count."""
    make = {
        "adamw": lambda torch, p: torch.optim.AdamW(p, betas=(0.9, 0.999)),
        "sgd": lambda torch, p: torch.optim.SGD(p, lr=0.0, momentum=0.9),
    }[name]
    ours = {"adamw": optim.adamw(0.9, 0.999), "sgd": optim.sgd(0.9)}[name]
    params, all_grads = small_params(), [small_params(seed) for seed in (1, 2, 3, 4)]
    rates, decays = [0.1, 0.2, 0.1, 0.05], [0.04, 0.1, 0.2, 0.4]
    out, _ = run(ours, params, all_grads, rates=rates, decays=decays, rests=[float(rest) for rest in rests])
    for layer, resting in (("prototypes", rests), ("mlp_0", [0] * 4)):
        grads = [tree["dino_head"][layer]["kernel"] for tree in all_grads]
        start = params["dino_head"][layer]["kernel"]
        expected = torch_steps(make, start, grads, rates=rates, decays=decays, rests=resting)
        np.testing.assert_allclose(out["dino_head"][layer]["kernel"], expected, rtol=1e-6, atol=3e-7)


def test_frozen_backbone_rests_while_the_heads_learn():
    params = small_params()
    out, state = run_adamw(params, [small_params(1)], rates=[0.1], backbone_rates=[0.0], decays=[0.4])
    jax.tree.map(np.testing.assert_array_equal, out["backbone"], params["backbone"])
    assert (out["dino_head"]["mlp_0"]["kernel"] != params["dino_head"]["mlp_0"]["kernel"]).all()
    assert (np.abs(state.mu["backbone"]["cls_token"]) > 0).all()


def test_rates_by_hand():
    rates = optim.rates(
        small_params(), layer_decay=0.5, patch_embed_multiplier=0.2, lr=1.0, backbone_lr=2.0, last_layer_lr=3.0
    )
    assert rates["backbone"]["cls_token"] == 2 * 0.5**4
    assert rates["backbone"]["blocks"]["ls1"]["gamma"].ravel().tolist() == [0.25, 0.5, 1.0]
    assert rates["dino_head"]["mlp_0"]["kernel"] == 1
    assert rates["dino_head"]["prototypes"]["kernel"] == 3


def test_what_an_objective_does_not_train_rests():
    rates = optim.rates(
        small_params(),
        layer_decay=1.0,
        patch_embed_multiplier=1.0,
        lr=1.0,
        backbone_lr=1.0,
        last_layer_lr=1.0,
        unused=("dino_head/", "backbone/cls_token"),
    )
    resting = jax.tree.map(lambda rate: not np.any(rate), rates)
    assert all(jax.tree.leaves(resting["dino_head"]))
    assert resting["backbone"]["cls_token"]
    assert not resting["backbone"]["patch_embed"]["kernel"]


def test_bias_correction_keeps_float32_accuracy():
    """The first step is the sign of the gradient; optax's own correction is off by 6e-6 here."""
    params = {"head": {"w": np.zeros(3, np.float32)}}
    out, _ = run_adamw(params, [{"head": {"w": np.array([1.0, -2.0, 3.0])}}], rates=[1.0], last_rates=[1.0], decays=[0])
    np.testing.assert_allclose(out["head"]["w"], [-1, 1, -1], rtol=3e-7)


def test_state_mirrors_the_parameters_in_float32():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), small_params())
    state = optim.adamw(0.9, 0.999).init(params)
    for moments in (state.mu, state.nu):
        assert jax.tree.structure(moments) == jax.tree.structure(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {np.dtype(np.float32)}


def test_ema_and_norms_by_hand():
    teacher = jax.jit(optim.ema)({"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 2.0])}, 0.75)
    np.testing.assert_allclose(teacher["w"], [1.5, 2.0], rtol=1e-6)
    still = jax.jit(optim.ema)({"w": np.array([0.1, 0.7])}, {"w": np.array([3.0, 2.0])}, 1.0)
    np.testing.assert_array_equal(still["w"], np.array([0.1, 0.7], np.float32))
    norms = optim.norms_by_module({"a": {"x": np.array([3.0]), "y": np.array([4.0])}, "b": {"x": np.array([2.0])}})
    np.testing.assert_allclose([norms["a"], norms["b"]], [5, 2])


def entry(node, name):
    """Reads the value for reference parameter `name` from one of our trees: a scalar, or one per block."""
    path, block = to_path(name)
    for key in path:
        node = node[key]
    per_block = np.ravel(node)
    return per_block[block if len(per_block) > 1 else 0]


def check_groups(params, names, *, prefix, expected, layer_decay, patch_embed_multiplier):
    """Compares our three trees with `expected` [lr multiplier, decay multiplier, is last layer] per name."""
    ours = trees(params, layer_decay=layer_decay, patch_embed_multiplier=patch_embed_multiplier)
    rows = [[entry(ours[kind], prefix + name) for kind in ours] for name in names]
    for name, row, wanted in zip(names, rows, expected, strict=True):
        np.testing.assert_allclose(row, wanted, rtol=2e-7, err_msg=name)


def zeros_of(group: dict) -> dict[str, np.ndarray]:
    """Makes arrays of the names and shapes of a recorded group, whose shapes are texts as "(3, 4)"."""
    shapes = [tuple(int(size) for size in text.strip("(),").split(",")) for text in group["shapes"]]
    return {name: np.zeros(shape) for name, shape in zip(group["names"].tolist(), shapes, strict=True)}


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_parts("v3_param_groups.npz", r"((?!convnext)\w+/\w+)/names"))
def test_golden_of_parameter_groups(golden, case):
    file = golden("v3_param_groups.npz")
    group, module = file.under(f"{case}/"), "dino_head" if "head" in case else "backbone"
    params = tree({f"{module}.{name}": zeros for name, zeros in zeros_of(group).items()})
    check_groups(
        params,
        group["names"],
        prefix=f"{module}.",
        expected=np.stack([group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"]], axis=1),
        layer_decay=file.config["layerwise_decay"],
        patch_embed_multiplier=file.config["patch_embed_lr_mult"],
    )


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_parts("v2_param_groups.npz", r"(\w+)/names"))
def test_golden_of_parameter_groups_of_dinov2(golden, case):
    file = golden("v2_param_groups.npz")
    group, module = file.under(f"{case}/"), "dino_head" if "head" in case else "backbone"
    rows = np.stack([group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"]], axis=1)
    # Twice each, as the matrices of a SwiGLU are two of ours.
    halves = unfused({name: np.stack([row, row]) for name, row in zip(group["names"].tolist(), rows, strict=True)})
    check_groups(
        tree({f"{module}.{name}": np.zeros((1, 1)) for name in halves}),
        list(halves),
        prefix=f"{module}.",
        expected=np.stack([half[0] for half in halves.values()]),
        layer_decay=file.config["layerwise_decay"],
        patch_embed_multiplier=file.config["patch_embed_lr_mult"],
    )


@pytest.mark.golden
def test_golden_of_decay_of_dino(golden):
    """All but biases and what has one dimension; the frozen gain is in no group."""
    file = golden("v1_schedules_param_groups.npz")
    names = file["param_groups/names"].tolist()
    gain = "head.last_layer.weight_g"
    mask = optim.decay_mask(tree({name: np.zeros((1, 1)) for name in {*names, gain}}), gains=gain in names)
    assert [bool(entry(mask, name)) for name in names] == file["param_groups/weight_decayed"].tolist()
    assert bool(mask["head"]["prototypes"]["gain"]) == (gain in names)
    assert optim.decay_mask({"prototypes": {"gain": np.zeros(2)}})["prototypes"]["gain"]


# Norms whose names in the reference do not say so.
DOWNSAMPLING_NORM = re.compile(r"downsample_layers\.(0\.1|[1-9]\.0)\.weight")


@pytest.mark.golden
@pytest.mark.parametrize("case", golden_parts("v3_param_groups.npz", r"(convnext\w*/\w+)/names"))
def test_golden_of_parameter_groups_of_convnext(golden, case):
    """One difference: the reference decays the norms before down-sampling; ours treats them as all other norms."""
    file = golden("v3_param_groups.npz")
    group = file.under(f"{case}/")
    zeros = zeros_of(group)
    surprising = np.array([bool(DOWNSAMPLING_NORM.fullmatch(name)) for name in zeros])
    assert surprising.any() and (group["wd_multiplier"][surprising] == 1).all()
    decayed = np.where(surprising, 0, group["wd_multiplier"])
    check_groups(
        {"backbone": convnext_tree(zeros)},
        [convnext_name(name) for name in zeros],
        prefix="backbone.",
        expected=np.stack([group["lr_multiplier"], decayed, group["is_last_layer"]], axis=1),
        layer_decay=file.config["layerwise_decay"],
        patch_embed_multiplier=file.config["patch_embed_lr_mult"],
    )


TRAINING_RUNS = golden_runs("v3_train_*.npz")


@pytest.mark.golden
@pytest.mark.parametrize("name", TRAINING_RUNS)
def test_golden_of_parameter_groups_in_training(golden, name):
    file = golden(name)
    options = file.config["optim"]
    check_groups(
        tree(file.under("init/student/")),
        file["info/param_names"],
        prefix="",
        expected=file["info/param_lr_wd_islast"],
        layer_decay=options["layerwise_decay"],
        patch_embed_multiplier=options["patch_embed_lr_mult"],
    )


@pytest.mark.golden
@pytest.mark.parametrize("name", TRAINING_RUNS)
def test_golden_of_the_first_update(golden, name):
    """From the stored gradients: clipping, AdamW with the groups' rates, and the teacher's average."""
    file = golden(name)
    options, schedule = file.config["optim"], {key: values[0] for key, values in file.under("schedule/").items()}
    student, teacher, grads = (tree(file.under(key)) for key in ("init/student/", "init/teacher/", "grad_step0/"))
    adamw = optim.adamw(options["adamw_beta1"], options["adamw_beta2"])
    rates = optim.rates(
        student,
        layer_decay=options["layerwise_decay"],
        patch_embed_multiplier=options["patch_embed_lr_mult"],
        lr=schedule["lr"],
        backbone_lr=schedule["lr"],
        last_layer_lr=schedule["last_layer_lr"],
    )

    @jax.jit
    def step(student, teacher, grads):
        clipped, norms = optim.clip_by_module(grads, options["clip_grad"])
        updates, _ = adamw.update(
            clipped,
            adamw.init(student),
            student,
            rates=rates,
            weight_decay=schedule["weight_decay"],
            decay_mask=optim.decay_mask(student),
            last_layer=optim.is_last_layer(student),
        )
        student = optax.apply_updates(student, updates)
        return student, optim.ema(teacher, student, file["info/ema_momentum_used"][0]), norms

    student, teacher, norms = step(student, teacher, grads)
    for module, norm in norms.items():
        np.testing.assert_allclose(norm, file[f"metrics/{module}_grad_norm"][0], rtol=1e-6)
    assert_trees_close(student, tree(file.under("after_step1/student/")), absolute=2e-7, relative=2e-7)
    assert_trees_close(teacher, tree(file.under("after_step1/teacher/")), absolute=2e-7, relative=2e-7)
