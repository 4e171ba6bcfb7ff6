"""Opens checkpoints wherever they come from: files of PyTorch or safetensors, folders of Hugging Face, timm or ours."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.weights import pth, safetensors
from dino_jax.weights.files import StateDict

# What writers here put beside a checkpoint whose layout cannot hold everything.
BESIDE = "dino_jax.json"
BESIDE_TENSORS = "dino_jax.safetensors"

# Written around names by data parallelism and torch.compile.
WRAPPERS = re.compile(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
HEADS = ("head.", "dino_head.", "ibot_head.")


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
      path: where it is.
      state: the backbone's tensors by name.
      heads: tensors of prototype heads by name, without "backbone." beside them.
      whose: "official", "hf" or "timm" where the place tells; None otherwise.
      config: what a folder's config.json says.
      beside: what `BESIDE` says.
      params, leftover: what `BESIDE_TENSORS` holds: parameters of ours, and buffers of official files.
      mean, std: channel statistics, where the folder tells.
    """

    path: Path
    state: StateDict
    heads: StateDict = dataclasses.field(default_factory=dict)
    whose: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params: StateDict = dataclasses.field(default_factory=dict)
    leftover: StateDict = dataclasses.field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def open_source(path: str | Path, *, branch: str = "teacher") -> Source:
    """Opens a checkpoint; tensors are read when they are used.

    Args:
      path: a .pth, .pt, .bin or .safetensors file, or a folder of Hugging Face or timm (config.json beside one).
      branch: which network of a training checkpoint, "teacher" or "student".

    Raises:
      ValueError: when there is none, or it is damaged or of another format.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path, branch)
    if not path.exists():
        raise ValueError(f"there are no weights at {path}: check the path")
    state, heads = read_file(path, branch)
    return Source(path, state, heads, whose="official" if path.suffix in (".pth", ".pt") else None)


def read_file(path: Path, branch: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads one file; returns the tensors of the backbone and of its heads.

    Raises:
      ValueError: when it is damaged, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        return split_heads(safetensors.read(path))
    return split_heads(tensors_of(pth.read(path), path, branch))


def _open_folder(folder: Path, branch: str) -> Source:
    config = _json(folder / "config.json")
    names = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
    file = next((folder / name for name in names if (folder / name).exists()), None)
    if not config or file is None:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise ValueError(
            f"{folder} holds {there}: a folder of weights has config.json and model.safetensors, or was written by "
            "python -m dino_jax.convert --to orbax"
        )
    state, heads = read_sharded(file) if file.suffix == ".json" else read_file(file, branch)
    aside = safetensors.read(folder / BESIDE_TENSORS) if (folder / BESIDE_TENSORS).exists() else {}
    statistics = {**_json(folder / "preprocessor_config.json"), **config.get("pretrained_cfg", {})}
    mean, std = (statistics.get(key, statistics.get(f"image_{key}")) for key in ("mean", "std"))
    return Source(
        folder,
        state,
        heads,
        whose="hf" if "model_type" in config else "timm",
        config=config,
        beside=_json(folder / BESIDE),
        params={name.removeprefix("ours/"): x for name, x in aside.items() if name.startswith("ours/")},
        leftover={name.removeprefix("official/"): x for name, x in aside.items() if name.startswith("official/")},
        mean=tuple(mean) if mean else None,
        std=tuple(std) if std else None,
    )


def read_sharded(index: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads safetensors split over several files, listed in an index.

    Raises:
      ValueError: when a file or a tensor is missing.
    """
    listed = _json(index).get("weight_map", {})
    files = {name: safetensors.read(index.parent / Path(name).name) for name in sorted(set(listed.values()))}
    for name, file in listed.items():
        if name not in files[file]:
            raise ValueError(f"{index} says that {file} holds {name}, but it does not: fetch both again")
    return split_heads({name: files[file][name] for name, file in listed.items()})


def tensors_of(stored: Any, path: Path, branch: str) -> dict[str, np.ndarray]:
    """Finds the tensors by name in what a .pth file holds, inside of the nesting of training checkpoints.

    Raises:
      ValueError: when there are none.
    """
    content = stored
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        tensors = {str(name): x for name, x in content.items() if isinstance(x, np.ndarray)}
        inner = next((key for key in (branch, "model", "state_dict") if isinstance(content.get(key), Mapping)), None)
        if inner is None or len(tensors) > 1:
            if tensors:
                return of_branch({WRAPPERS.sub("", name).removeprefix("."): x for name, x in tensors.items()}, branch)
            break
        content = content[inner]
    shown = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{path} holds no weights of a {branch}: it has {shown[:120]}")


def of_branch(state: StateDict, branch: str) -> dict[str, np.ndarray]:
    """Keeps the tensors of one network where names begin with "teacher." and "student."."""
    chosen = {name.removeprefix(f"{branch}."): x for name, x in state.items() if name.startswith(f"{branch}.")}
    return chosen or dict(state)


def split_heads(state: StateDict) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parts a state dict into backbone and heads, and brings the backbone's names to their shortest form."""
    backbone = {name: x for name, x in state.items() if name.startswith("backbone.")}
    heads = {name: x for name, x in state.items() if name.startswith(HEADS) and backbone}
    rest = backbone or state
    return {_short(name): x for name, x in rest.items()}, heads


def _short(name: str) -> str:
    for prefix in ("backbone.", "model.", "vit.", "dinov2.", "dinov2_with_registers."):
        name = name.removeprefix(prefix)
    # FSDP in DINOv2 puts blocks into chunks: blocks.<chunk>.<block>.
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, it is no JSON: fetch it again")
    return content
