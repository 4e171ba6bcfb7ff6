"""Speed of feature extraction beside transformers' PyTorch model of the same shape, for `bench features`."""

import argparse
import contextlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dino_jax import compiling
from dino_jax.benches import turns
from dino_jax.data.reading import processors
from dino_jax.models import VIT_VARIANTS, Extractor, VisionTransformer
from dino_jax.progress import table
from dino_jax.weights.libraries import imported

SIZES = ("dinov3_vits16", "dinov3_vitb16", "dinov3_vitl16")
DINOV3 = sorted(name for name in VIT_VARIANTS if name.startswith("dinov3"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "--variants",
        nargs="+",
        default=SIZES,
        choices=DINOV3,
        metavar="NAME",
        help=f"networks (default {' '.join(SIZES)})",
    )
    parser.add_argument("--batch", type=int, default=8, help="images per batch (default 8)")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each side, which take turns (default 7)")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="type of the computation (default float32)",
    )
    parser.add_argument("--no-torch", action="store_true", help="measure this code alone")


def bench_features(options: argparse.Namespace) -> dict[str, float]:
    """Measures images/s of both sides in turn and prints a table.

    Returns:
      Flat `features/<side>/<variant>` numbers; the ratio of medians is above 1 where ours is faster.
    """
    if options.batch < 1 or options.repeats < 1:
        raise ValueError("--batch and --repeats must be at least 1")
    rows: list[list[str | float]] = [["model", "images/s", "PyTorch", "ratio"]]
    numbers: dict[str, float] = {}
    for variant in options.variants:
        speeds = measure(variant, options)
        numbers |= {f"features/{name}/{variant}": value for name, value in speeds.items()}
        rows.append(
            [variant, *(f"{speeds[name]:.2f}" if name in speeds else "-" for name in ("ours", "torch", "ratio"))]
        )
    device = f"1 x {jax.devices()[0].device_kind}, {processors()} threads"
    print(f"{options.precision}, batch {options.batch}, {options.size} px, medians of {options.repeats}; {device}")
    print(table(rows))
    return numbers


def measure(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Returns images/s of one size: "ours", "torch" and their "ratio"."""
    shape = (options.batch, options.size, options.size, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    with contextlib.ExitStack() as stack:
        sides = {"ours": turns.timed(our_call(variant, images, jnp.dtype(options.precision)))}
        if not options.no_torch:
            torch = turns.Elsewhere(torch_call, VIT_VARIANTS[variant], images, options.precision)
            sides["torch"] = stack.enter_context(torch).seconds
        times = turns.take_turns(sides, options.repeats)
    speeds = {name: options.batch / statistics.median(seconds) for name, seconds in times.items()}
    return speeds | ({"ratio": speeds["ours"] / speeds["torch"]} if "torch" in speeds else {})


def our_call(variant: str, images: np.ndarray, dtype: Any) -> turns.Call:
    """Returns a call that computes the features of the images, compiled."""
    backbone = VisionTransformer(**VIT_VARIANTS[variant], dtype=dtype)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), {"global": jnp.asarray(images)})["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    model = Extractor(variant, backbone, params)
    options = compiling.inference_options(jax.default_backend())
    program = jax.jit(lambda model, images: model(images), compiler_options=options)
    placed = jnp.asarray(images)
    return lambda: jax.block_until_ready(program(model, placed))


def torch_call(sizes: dict[str, Any], images: np.ndarray, precision: str) -> turns.Call:
    """Returns the same call of `transformers.DINOv3ViTModel`, on the CPU and as many threads.

    Args:
      sizes: a row of `models.VIT_VARIANTS`.
    """
    torch, transformers = imported("torch"), imported("transformers")
    backbone = VisionTransformer(**sizes)
    torch.set_num_threads(processors())
    config = transformers.DINOv3ViTConfig(
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=backbone.hidden,
        use_gated_mlp=sizes["ffn"] == "swiglu",
        hidden_act="silu" if sizes["ffn"] == "swiglu" else "gelu",
        num_register_tokens=sizes["registers"],
        patch_size=sizes["patch_size"],
        image_size=images.shape[1],
    )
    model = transformers.DINOv3ViTModel(config).eval().to(getattr(torch, precision))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(getattr(torch, precision))

    def call() -> Any:
        with torch.inference_mode():
            return model(pixels).last_hidden_state

    return call
