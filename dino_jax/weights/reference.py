"""Runs the PyTorch networks of transformers and timm on a random image beside ours: the proof of a conversion."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dino_jax.models import Extractor
from dino_jax.weights import configs, safetensors
from dino_jax.weights.libraries import imported
from dino_jax.weights.source import open_checkpoint
from dino_jax.weights.store import Weights

Tokens = dict[str, np.ndarray]


def differences(weights: Weights, folder: Path, to: str) -> dict[str, float]:
    """Compares our features with those of the library that a checkpoint was written for.

    Args:
      weights: as read back from the folder.
      folder: what `store.save` wrote for "hf" or "timm".

    Returns:
      The largest difference per output and image size, by "<output>/<height>x<width>".

    Raises:
      ValueError: when the library is not installed.
    """
    network = hugging_face(folder) if to == "hf" else timm(weights, folder)
    ours = weights.extractor(jnp.float32)
    out = {}
    for height, width in sizes(ours):
        images = np.random.default_rng(0).normal(size=(1, height, width, ours.backbone.in_channels)).astype(np.float32)
        theirs = (tokens_of_hugging_face if to == "hf" else tokens_of_timm)(network, images, ours)
        mine = ours(jnp.asarray(images))
        for name, there in theirs.items():
            here = np.asarray(mine[name]).reshape(there.shape)
            out[f"{name}/{height}x{width}"] = float(np.abs(here - there).max(initial=0.0))
    return out


def sizes(model: Extractor) -> Iterator[tuple[int, int]]:
    """Yields the native size, and one that is neither that nor square."""
    patch = model.patch_size
    side = (getattr(model.backbone, "pos_grid", None) or (224 // patch)) * patch
    yield side, side
    yield side - patch, side + 2 * patch


def hugging_face(folder: Path) -> Any:
    """Loads a folder with transformers."""
    transformers = imported("transformers")
    name = configs.CLASSES[_layout(folder)][1]
    options = {"add_pooling_layer": False} if name == "ViTModel" else {}
    try:
        network = getattr(transformers, name)
    except Exception as error:  # it imports its parts on first use
        raise ValueError(f"transformers cannot give its {name} ({' '.join(str(error).split())[:120]})") from None
    return network.from_pretrained(folder, **options).eval().float()


def timm(weights: Weights, folder: Path) -> Any:
    """Builds timm's network of a published name and loads a folder's tensors into it."""
    library, torch = imported("timm"), imported("torch")
    config = open_checkpoint(folder).config
    if not config["architecture"]:
        raise ValueError(f"timm has no network of the size of {weights.architecture.name}")
    network = library.create_model(config["architecture"], **config["model_args"])
    state = safetensors.read(folder / "model.safetensors")
    network.load_state_dict({name: torch.from_numpy(np.array(x, np.float32)) for name, x in state.items()})
    return network.eval()


def tokens_of_hugging_face(network: Any, images: np.ndarray, model: Extractor) -> Tokens:
    """Runs a network of transformers on `(batch, height, width, channels)`; returns tokens as ours, patches flat."""
    options = {"interpolate_pos_encoding": True} if type(network).__name__ == "ViTModel" else {}
    out = _run(network, images, **options).last_hidden_state.numpy()
    return _parted(out, getattr(model.backbone, "registers", 0))


def tokens_of_timm(network: Any, images: np.ndarray, model: Extractor) -> Tokens:
    """Runs a network of timm on `(batch, height, width, channels)`; returns tokens as ours, patches flat."""
    out = _run(network.forward_features, images)
    if out.ndim == 3:
        return _parted(out.numpy(), getattr(model.backbone, "registers", 0))
    torch = imported("torch")
    with torch.inference_mode():
        cls = network.forward_head(out, pre_logits=True)
        norm = getattr(network.head, "norm", None) if hasattr(network, "head") else None
        patches = (norm(out) if norm is not None else out).flatten(2).transpose(1, 2)
    return {"cls": cls.numpy(), "patches": patches.numpy()}


def _run(function: Any, images: np.ndarray, **options: Any) -> Any:
    torch = imported("torch")
    with torch.inference_mode():
        return function(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), **options)


def _parted(tokens: np.ndarray, registers: int) -> Tokens:
    first = 1 + registers
    return {"cls": tokens[:, 0], "registers": tokens[:, 1:first], "patches": tokens[:, first:]}


def _layout(folder: Path) -> str:
    kind = open_checkpoint(folder).config["model_type"]
    return next(layout for layout, (name, _) in configs.CLASSES.items() if name == kind)
