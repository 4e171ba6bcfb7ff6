"""PyTorch state dicts of the references as our parameter trees, and gradients or parameters compared by their names."""

import re

import jax
import numpy as np

RENAMED = {
    "storage_tokens": "registers",
    "register_tokens": "registers",
    "patch_embed.proj.": "patch_embed.",
    "last_layer.weight_g": "prototypes.gain",
    "last_layer.weight_v": "prototypes.weight",
    "last_layer": "prototypes",
}


def to_path(name: str) -> tuple[tuple[str, ...], int | None]:
    """Translates a reference parameter name to (path in our tree, block index or None)."""
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    name = re.sub(r"head\.mlp\.weight|head\.mlp\.bias", lambda m: m[0].replace("mlp.", "mlp_0."), name)
    name = re.sub(r"mlp\.(\d+)\.", lambda m: f"mlp_{int(m[1]) // 2}.", name)
    if re.search(r"norm\w*\.weight$", name):
        name = name.removesuffix("weight") + "scale"
    name = re.sub(r"\.weight$", ".kernel", name)
    # DINOv2 may group its blocks in chunks, "blocks.<chunk>.<index>.".
    block = re.search(r"blocks\.(?:\d+\.)?(\d+)\.", name)
    if block:
        return tuple(name.replace(block[0], "blocks.").split(".")), int(block[1])
    return tuple(name.split(".")), None


def convnext_name(name: str) -> str:
    """Renames a parameter of the reference's ConvNeXt so that `to_path` understands it."""
    # The stem is a convolution and its norm; the other stages begin with a norm and their convolution.
    name = re.sub(r"downsample_layers\.0\.0|downsample_layers\.([1-9])\.1", r"stages_\1.downsample.conv", name)
    name = re.sub(r"downsample_layers\.0\.1|downsample_layers\.([1-9])\.0", r"stages_\1.downsample.norm", name)
    name = re.sub(r"stages\.(\d+)\.(\d+)\.", r"stages_\1.blocks.\2.", name).replace("stages_.", "stages_0.")
    renamed = {"dwconv": "depthwise", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2", "gamma": "ls.gamma"}
    return re.sub("|".join(renamed), lambda part: renamed[part[0]], name)


def convnext_tree(state_dict: dict[str, np.ndarray]) -> dict:
    """Builds our ConvNeXt's parameter tree; the last norm has a second name in the reference, `norms.3`."""
    return tree({convnext_name(name): x for name, x in state_dict.items() if not name.startswith("norms.")})


def to_array(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Brings a reference array into our layout: kernels (in, out), patch kernel (p, p, channels, dim), flat tokens."""
    if path[-1] == "kernel":
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    if path[-1] in ("registers", "pos_embed"):
        return array.reshape(array.shape[-2:])
    return array.reshape(-1)


def unfused(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits DINOv2's fused SwiGLU matrices w12 into w1 and w2."""
    out = {}
    for name, array in state_dict.items():
        if ".w12." in name:
            out[name.replace("w12", "w1")], out[name.replace("w12", "w2")] = np.split(array, 2)
        else:
            out[name] = array
    return out


def tree(state_dict: dict[str, np.ndarray]) -> dict:
    """Builds our nested parameter tree (blocks stacked) from reference arrays by name; buffers are left out."""
    stacked: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name, array in unfused(state_dict).items():
        if name.endswith(("rope_embed.periods", "qkv.bias_mask")):
            continue
        path, block = to_path(name)
        if block is None:
            flat[path] = to_array(path, array)
        else:
            stacked.setdefault(path, {})[block] = to_array(path, array)
    for path, blocks in stacked.items():
        flat[path] = np.stack([blocks[i] for i in range(len(blocks))])
    out: dict = {}
    for path, array in flat.items():
        node = out
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return out


def by_block(params: dict) -> dict:
    """Takes stacked blocks apart, `blocks/...` to `blocks/0/...` and so on: tensors as the references have them."""
    out = {}
    for key, node in params.items():
        if key == "blocks":
            depth = len(jax.tree.leaves(node)[0])
            out[key] = {str(i): jax.tree.map(lambda x, i=i: x[i], node) for i in range(depth)}
        else:
            out[key] = by_block(node) if isinstance(node, dict) else node
    return out


def assert_trees_close(
    actual, expected: dict, *, relative: float = 0.0, absolute: float = 0.0, prefix: str = ""
) -> None:
    """Checks that two trees hold the same paths and that no entry is off by more than
    `absolute + relative * largest entry` of its expected array."""
    assert set(actual) == set(expected), f"{prefix}: {set(actual) ^ set(expected)}"
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_trees_close(actual[key], value, relative=relative, absolute=absolute, prefix=f"{prefix}/{key}")
        else:
            assert_close(actual[key], value, relative=relative, absolute=absolute, name=f"{prefix}/{key}")


def sum_tolerance(outputs_and_cotangents) -> float:
    """Returns the allowed error of a sum of products, in which most may cancel, by the sum of their sizes.

    1e-7 of that was the most in 47 sums.
    """
    return 3e-7 * float(sum(np.abs(np.asarray(x) * cotangent).sum() for x, cotangent in outputs_and_cotangents))


def assert_close(actual, expected, *, relative: float = 0.0, absolute: float = 0.0, name: str = "") -> None:
    """Checks that no entry is off by more than `absolute + relative * largest expected entry`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    worst = np.abs(actual - expected).max(initial=0.0)
    allowed = absolute + relative * np.abs(expected).max(initial=0.0)
    assert worst <= allowed, f"{name}: off by {worst:.3g}, allowed {allowed:.3g}"
