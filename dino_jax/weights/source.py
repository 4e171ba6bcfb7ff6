"""Opens checkpoints wherever they come from: files of PyTorch or safetensors, folders of Hugging Face, timm or ours."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.weights import configs, pth, safetensors
from dino_jax.weights.files import ASIDE, FACTS, StateDict
from dino_jax.weights.manifest import Row

BRANCHES = ("teacher", "student")
# Where training programs keep the tensors by name; averaged ones first, as a teacher is an average.
NESTED = (
    *("ema", "model_ema", "state_dict_ema"),
    *("model", "state_dict", "model_state_dict", "module", "net", "backbone", "weights"),
)
DEEPEST = 5

# Written around names by data parallelism and torch.compile.
WRAPPERS = re.compile(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
PREFIXES = ("backbone.", "model.", "vit.", "dinov2.", "dinov2_with_registers.")
# Names that transformers gives tensors in memory, from its fifth version on, and those of the files that it writes.
IN_MEMORY = (
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"^(encoder\.layer\.\d+)\.attention\.q_proj\.", r"\1.attention.attention.query."),
    (r"^(encoder\.layer\.\d+)\.attention\.k_proj\.", r"\1.attention.attention.key."),
    (r"^(encoder\.layer\.\d+)\.attention\.v_proj\.", r"\1.attention.attention.value."),
    (r"^(encoder\.layer\.\d+)\.attention\.o_proj\.", r"\1.attention.output.dense."),
    (r"^(encoder\.layer\.\d+)\.mlp\.down_proj\.", r"\1.mlp.weights_out."),
)
# Those of a ViT alone: DINOv2 calls its feed-forward layers so in files too.
IN_MEMORY_VIT = ((r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense."))

FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
INDEX = ".index.json"
PART = re.compile(r"-\d+-of-(\d+)\.(safetensors|bin)")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
      path: where it is.
      state: the backbone's tensors by name.
      skipped: what stands beside the backbone: heads, decoders, and networks that another was preferred to.
      whose: "official", "hf" or "timm" where the place tells; None otherwise.
      config: what a folder's config.json says.
      beside: what `FACTS` says, where it is there.
      params, leftover: what `ASIDE` holds: parameters of ours, and buffers of official files.
      statistics: "mean" and "std" of the channels, where the folder tells them: the file, and what stands there.
    """

    path: Path
    state: StateDict
    skipped: tuple[Row, ...] = ()
    whose: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, Any] | None = None
    params: StateDict = dataclasses.field(default_factory=dict)
    leftover: StateDict = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, tuple[Path, Any]] = dataclasses.field(default_factory=dict)


def open_checkpoint(path: str | Path, *, branch: str = "teacher") -> Checkpoint:
    """Opens a checkpoint; tensors are read when they are used.

    Args:
      path: a .pth, .pt, .bin or .safetensors file, the index of several, or a folder of Hugging Face or timm
        (config.json beside one), also one in the cache of Hugging Face.
      branch: which network of a training checkpoint, "teacher" or "student".

    Raises:
      ValueError: when there is none, or it is damaged or of another format, or has no such branch.
    """
    path = Path(path).expanduser()
    check_branch(branch)
    if path.is_dir():
        return _open_folder(_snapshot(path), branch)
    if not path.exists():
        raise ValueError(f"there are no weights at {path}: check the path")
    if (part := PART.search(path.name)) and int(part[1]) > 1:
        raise ValueError(f"{path} is one of {int(part[1])} parts: give the folder, {path.parent}")
    config = read_json(path.parent / "config.json") if path.name in FILES else {}
    if config and ("model_type" not in config or config["model_type"] in configs.KINDS):
        return _open_folder(path.parent, branch, path)
    state, skipped = _network(path, branch)
    whose = "official" if path.suffix in (".pth", ".pt") else None
    # A file of one of these names comes from a folder of a hub, which may tell the statistics.
    told = _statistics(path.parent, config) if path.name in FILES else {}
    return Checkpoint(path, state, skipped, whose=whose, statistics=told)


def _snapshot(folder: Path) -> Path:
    """Returns the snapshot of a model in the cache of Hugging Face; any other folder as it is.

    Raises:
      ValueError: when there are several.
    """
    if not folder.name.startswith("models--"):
        return folder
    found = sorted(entry for entry in folder.glob("snapshots/*") if entry.is_dir())
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} snapshots: give one of them, {', '.join(map(str, found))}")
    return found[0] if found else folder


def check_branch(branch: str) -> None:
    """Raises ValueError for what is not a branch."""
    if branch not in BRANCHES:
        raise ValueError(f"branch = {branch!r} is not one of {', '.join(BRANCHES)}")


def read_file(path: Path) -> Any:
    """Reads what one file holds; in a cache, files of safetensors have no suffix.

    Raises:
      ValueError: when it is damaged.
    """
    if path.suffix == ".safetensors" or safetensors.begins(path):
        return safetensors.read(path)
    return pth.read(path)


def _network(file: Path, branch: str) -> tuple[dict[str, np.ndarray], tuple[Row, ...]]:
    """Reads one backbone's tensors from a file or an index of several, and says what stands beside them."""
    read = read_sharded(file) if file.name.endswith(INDEX) else read_file(file)
    state, passed = tensors_of(read, file, branch)
    backbone, outside = split_backbone(state, file)
    return backbone, (*passed, *outside)


def _open_folder(folder: Path, branch: str, file: Path | None = None) -> Checkpoint:
    """Opens a folder; `file` is the one in it to read, None the first of `FILES`."""
    config = read_json(folder / "config.json")
    file = file or next((folder / name for name in FILES if (folder / name).exists()), None)
    if not config or file is None:
        raise ValueError(_no_weights(folder, file))
    state, skipped = _network(file, branch)
    aside = safetensors.read(folder / ASIDE) if (folder / ASIDE).exists() else {}
    whose = "hf" if "model_type" in config else "timm"
    return Checkpoint(
        folder,
        state,
        skipped,
        whose=whose,
        config=config,
        beside=read_json(folder / FACTS) if (folder / FACTS).exists() else None,
        params={name.removeprefix("ours/"): x for name, x in aside.items() if name.startswith("ours/")},
        leftover={name.removeprefix("official/"): x for name, x in aside.items() if name.startswith("official/")},
        statistics=_statistics(folder, config),
    )


def _no_weights(folder: Path, file: Path | None) -> str:
    """Says what is wrong with a folder that lacks a configuration or tensors."""
    if (folder / ".metadata").exists() or any(folder.glob("*.distcp")):
        tool = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        return f"{folder} is a distributed checkpoint of PyTorch: make a file of it by {tool} {folder} FILE.pth"
    if file is not None:
        return f"{folder} has no config.json beside {file.name}: fetch it too, or give the file itself, {file}"
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
    return (
        f"{folder} holds {there}: a folder of weights has config.json and model.safetensors, or was written by "
        "python -m dino_jax.convert --to orbax"
    )


def _statistics(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[Path, Any]]:
    """Finds "mean" and "std" in the files of a folder; timm's are in a part of its own, in older files on top.

    Args:
      config: what the folder's config.json holds.

    Raises:
      ValueError: when timm's part about them is damaged.
    """
    preprocessor, file_of_timm = folder / "preprocessor_config.json", folder / "config.json"
    timm = {} if "model_type" in config else config
    trained = timm.get("pretrained_cfg") or {}
    if not isinstance(trained, Mapping):
        raise ValueError(f"{file_of_timm} is damaged: pretrained_cfg = {trained!r} is not a mapping; fetch it again")
    image = {key.removeprefix("image_"): x for key, x in read_json(preprocessor).items()}
    found: dict[str, tuple[Path, Any]] = {}
    for file, part in ((preprocessor, image), (file_of_timm, timm), (file_of_timm, trained)):
        found |= {key: (file, part[key]) for key in ("mean", "std") if part.get(key) is not None}
    return found


def read_sharded(index: Path) -> dict[str, np.ndarray]:
    """Reads tensors split over several files, listed in an index.

    Raises:
      ValueError: when the index is damaged, or a file or a tensor is missing.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"{index} is damaged: weight_map does not give a file for each tensor; fetch it again")
    files = {name: read_file(index.parent / Path(name).name) for name in sorted(set(listed.values()))}
    for name, file in listed.items():
        if not isinstance(files[file], Mapping) or name not in files[file]:
            raise ValueError(f"{index} says that {file} holds {name}, but it does not: fetch both again")
    return {name: files[file][name] for name, file in listed.items()}


def tensors_of(stored: Any, path: Path, branch: str) -> tuple[dict[str, np.ndarray], tuple[Row, ...]]:
    """Finds the tensors of one network by name in what a file holds, inside of the nesting of training checkpoints.

    Returns:
      The tensors, and a row for every network of `NESTED` that it was preferred to.

    Raises:
      ValueError: when there are none.
    """
    content, named = stored, False
    passed: tuple[Row, ...] = ()
    for _ in range(DEEPEST):
        keys = [key for key in (branch, *NESTED) if _holds_tensors(content, key)]
        if not keys:
            break
        key, *others = keys
        passed += tuple(Row("skipped", theirs=(other,), note=f"{key} is read instead") for other in others)
        content, named = content[key], named or key == branch
    state = {WRAPPERS.sub("", name).removeprefix("."): x for name, x in _arrays(content).items()}
    mine = {name.removeprefix(f"{branch}."): x for name, x in state.items() if name.startswith(f"{branch}.")}
    if mine or (named and state):
        return mine or state, passed
    other = BRANCHES[1 - BRANCHES.index(branch)]
    if _holds_tensors(content, other) or any(name.startswith(f"{other}.") for name in state):
        raise ValueError(f"{path} holds a {other} only: load it with branch={other!r}")
    if state and branch == "student":
        raise ValueError(f"{path} holds one network, not a student beside a teacher: leave branch out")
    if state:
        return state, passed
    shown = (", ".join(map(str, content)) or "nothing") if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{path} holds no weights of a {branch}: it has {shown[:120]}")


def _arrays(content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, Mapping):
        return {}
    return {str(name): x for name, x in content.items() if isinstance(x, np.ndarray)}


def _holds_tensors(content: Any, key: str, depth: int = DEEPEST) -> bool:
    """Says whether there is a mapping under a key that has tensors in it, or deeper."""
    inner = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(inner, Mapping) or not depth:
        return False
    return any(x.ndim for x in _arrays(inner).values()) or any(_holds_tensors(inner, name, depth - 1) for name in inner)


def split_backbone(state: StateDict, path: Path) -> tuple[dict[str, np.ndarray], tuple[Row, ...]]:
    """Brings the names of a backbone's tensors to their shortest form.

    Where names say "backbone", all others are a row each, but not a second backbone such as `momentum_backbone.`.

    Raises:
      ValueError: when two tensors would get the same name.
    """
    said = any("backbone" in name.split(".") for name in state)
    outside = {name: x for name, x in state.items() if said and "backbone." not in name}
    longer: dict[str, str] = {}
    for name in state:
        short = _short(name)
        if name not in outside and longer.setdefault(short, name) != name:
            raise ValueError(f"{path} holds {longer[short]} and {name}, both {short}: leave one network in it")
    note = "beside the backbone"
    rows = tuple(Row("skipped", theirs=(name,), their_shapes=(x.shape,), note=note) for name, x in outside.items())
    return _as_filed({short: state[name] for short, name in longer.items()}), rows


def _as_filed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives tensors as transformers has them in memory the names and the form of its files; others stay as they are."""
    found = {}
    for name, x in state.items():
        of_vit = IN_MEMORY_VIT if name.startswith("layers.") else ()
        for pattern, filed in (*IN_MEMORY, *of_vit):
            name = re.sub(pattern, filed, name)
        found[name] = x
    for gate in [name for name in found if re.match(r"encoder\.layer\.\d+\.mlp\.gate_proj\.", name)]:
        up = gate.replace("gate_proj", "up_proj")
        if up in found:
            found[gate.replace("gate_proj", "weights_in")] = np.concatenate([found.pop(gate), found.pop(up)])
    return found


def _short(name: str) -> str:
    shorter = name
    for prefix in PREFIXES:
        shorter = shorter.removeprefix(prefix)
    if shorter != name:
        return _short(shorter)
    # FSDP in DINOv2 puts blocks into chunks: blocks.<chunk>.<block>.
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of one mapping; an empty one where there is no file.

    Raises:
      ValueError: when it is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, it is not JSON: fetch it again")
    return content
