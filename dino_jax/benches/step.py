"""Speed of the training step, for `bench step`; with `--torch`, beside a plain PyTorch step."""

import argparse
import contextlib
import importlib.util
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import build, config, sharding
from dino_jax import state as states
from dino_jax.benches import turns
from dino_jax.benches.features import DINOV3
from dino_jax.data.crops import GLOBAL_NUMBER
from dino_jax.data.masks import draw_masks
from dino_jax.data.reading import processors
from dino_jax.flops import train_flops_per_image
from dino_jax.models.vit import ATTENTIONS, REMAT_POLICIES
from dino_jax.progress import table
from dino_jax.report import peak_memory
from dino_jax.state import Networks
from dino_jax.throughput import peak_flops

Batch = dict[str, np.ndarray]
# PyTorch's DINOv3 step (float32, ViT-S/16, batch 4, 2 x 224 + 8 x 96, 65,536 prototypes, 2 threads), images/s by drop
# path, measured once on a 2-core machine whose XLA matmul reached MATMUL_THEN GFLOP/s: quoted, not measured here.
PYTORCH_THEN = {0.0: 1.13, 0.3: 1.48}
MATMUL_THEN = 426.0
# Of the plain matrix product: the smaller one is too little to keep accelerators busy.
MATMUL_SIDE = 8192
MATMUL_SIDES = {"cpu": 2048}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("--variant", default="dinov3_vits16", choices=DINOV3, help="network (default dinov3_vits16)")
    parser.add_argument("--batch", type=int, default=4, help="images per step, over all devices (default 4)")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="type of the computation (default float32)",
    )
    parser.add_argument(
        "--remat",
        default="matmuls",
        choices=tuple(REMAT_POLICIES),
        help="what the backward pass recomputes (default matmuls)",
    )
    parser.add_argument(
        "--attention", default="xla", choices=("auto", *ATTENTIONS), help="its kernel (default xla: plain products)"
    )
    parser.add_argument(
        "--drop-path", type=float, nargs="+", default=[0.0, 0.3], help="rates of stochastic depth (default 0 0.3)"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps, each after an untimed one (default 5)")
    parser.add_argument(
        "--torch", action="store_true", help="also time a plain PyTorch step, in turn with ours (CPU, float32)"
    )


def bench_step(options: argparse.Namespace) -> dict[str, float]:
    """Measures the whole training step on random crops, beside a plain matrix product.

    Returns:
      Flat `step/...` numbers, the speeds with the drop path in their name.
    """
    if options.batch < 2 or options.steps < 1:
        raise ValueError("--batch must be at least 2, as KoLeo compares images, and --steps at least 1")
    if options.batch % (devices := len(jax.devices())):
        raise ValueError(f"--batch {options.batch} cannot be split over {devices} devices: use a multiple")
    if not all(0 <= rate < 1 for rate in options.drop_path):
        raise ValueError(f"--drop-path {' '.join(map(str, options.drop_path))}: rates must be 0 or more and below 1")
    if options.torch:
        check_torch(options)
    numbers = {"step/matmul_gflops": matmul_speed(jnp.dtype(options.precision)) / 1e9}
    head = ["drop path", "images/s", "GFLOP/s", "of matmul", "MFU", "compile", "temporary", "PyTorch", "ratio"]
    rows: list[list[str | float]] = [[*head]]
    for rate in options.drop_path:
        measured = measure_step(options, rate)
        numbers |= {f"step/{name}/drop_path_{rate:g}": value for name, value in measured.items()}
        rows.append([f"{rate:g}", *_cells(measured, numbers["step/matmul_gflops"])])
    numbers["step/peak_memory_gib"] = peak_memory()
    print(
        f"{options.variant}, {options.precision}, batch {options.batch}, 2 x 224 + 8 x 96 px, "
        f"remat {options.remat}, attention {options.attention}, "
        f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    )
    print(
        f"plain matrix product: {numbers['step/matmul_gflops']:.0f} GFLOP/s; peak host memory {peak_memory():.1f} GiB"
    )
    print(table(rows))
    if options.torch:
        print("PyTorch: a plain step of the same shapes, in a process of its own, in turn with ours; medians")
    elif _comparable(options):
        quoted = ", ".join(f"{speed} images/s at drop path {rate:g}" for rate, speed in PYTORCH_THEN.items())
        print(
            f"quoted, not run here: PyTorch's DINOv3 step {quoted}, on a machine whose XLA matmul reached "
            f"{MATMUL_THEN:.0f} GFLOP/s; --torch runs a PyTorch step beside ours"
        )
    return numbers


def measure_step(options: argparse.Namespace, drop_path: float) -> dict[str, float]:
    """Compiles and times the step of one setting, in turn with PyTorch's if that is asked for."""
    c = config.default()
    c.precision, c.remat = options.precision, options.remat
    c.model = config.model(options.variant, drop_path=drop_path, attention=options.attention)
    mesh = sharding.make_mesh()
    group = options.batch // sharding.data_shards(mesh)
    phase = config.phase(steps=10, batch_size=options.batch, masks={"group_size": max(group, 1)})
    config.set_phases(c, bench=phase)  # the networks have the heads that its losses need
    networks = build.networks(c, shards=sharding.data_shards(mesh))
    networks = build.with_attention(networks, c, mesh.local_devices[0])
    host = random_batch(phase, patch=c.model.patch_size)
    compiled, step, compile_seconds = compiled_step(networks, phase, host, mesh)
    with contextlib.ExitStack() as stack:
        sides = {"ours": turns.timed(step)}
        if options.torch:
            sides["torch"] = stack.enter_context(torch_step(host, c)).seconds
        times = turns.take_turns(sides, options.steps)
    speeds = {name: options.batch / statistics.median(seconds) for name, seconds in times.items()}
    flops = speeds["ours"] * train_flops_per_image(networks, phase)
    peak = peak_flops(jax.devices()[0].device_kind)
    memory = compiled.memory_analysis()
    measured = {
        "images_per_second": speeds["ours"],
        "gflops": flops / 1e9,
        "compile_seconds": compile_seconds,
        "temporary_gib": memory.temp_size_in_bytes / 2**30 if memory else float("nan"),
    }
    if peak:
        measured["mfu"] = flops / (peak * len(jax.devices()))
    if options.torch:
        measured["torch_images_per_second"] = speeds["torch"]
        measured["ratio_to_torch"] = speeds["ours"] / speeds["torch"]
    return measured


def compiled_step(networks: Networks, options: ConfigDict, host: Batch, mesh: Mesh) -> tuple[Any, turns.Call, float]:
    """Returns the compiled step, a call that trains one step on a batch, and the seconds of compilation."""
    state = states.init(networks, build.optimizer(options), mesh, seed=0)
    batch = sharding.place(host, mesh)
    hyper = build.hyper(build.phase_schedules(options), 5)
    step = jax.jit(build.train_step(networks, options, seed=0), donate_argnums=0)
    start = time.perf_counter()
    compiled = step.lower(state, batch, hyper).compile()
    compile_seconds = time.perf_counter() - start

    def call() -> None:
        nonlocal state
        state, *measured = compiled(state, batch, hyper)
        jax.block_until_ready((state, measured))

    return compiled, call, compile_seconds


def check_torch(options: argparse.Namespace) -> None:
    """Raises ValueError for what the plain PyTorch step cannot be compared with."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError("--torch needs PyTorch: pip install -e '.[reference]'")
    if options.precision != "float32" or config.model(options.variant).ffn != "mlp":
        raise ValueError("--torch compares float32 models with a GELU feed-forward only")


def torch_step(host: Batch, c: ConfigDict) -> turns.Elsewhere:
    """Starts a plain PyTorch step with the sizes of `c`, on the CPU."""
    sizes = {"patch": c.model.patch_size, "hidden": int(c.model.width * c.model.ffn_ratio)}
    sizes |= {name: c.model[name] for name in ("width", "depth", "heads", "registers", "drop_path")}
    head = {name: c.dino_head[name] for name in ("prototypes", "hidden", "bottleneck")}
    return turns.Elsewhere(_build_torch_step, host, sizes, head, processors())


def _build_torch_step(*arguments: Any) -> turns.Call:
    from dino_jax.benches import torch_step

    return torch_step.build_step(*arguments)


def random_batch(options: ConfigDict, *, patch: int) -> Batch:
    """Makes a batch of noise with real masks."""
    rng = np.random.default_rng(0)
    crops, samples = options.crops, options.batch_size
    groups = samples // options.masks.group_size
    drawn = [
        draw_masks(
            rng,
            crops=GLOBAL_NUMBER * options.masks.group_size,
            grid=(crops.global_size // patch,) * 2,
            ratio=tuple(options.masks.ratio),
            probability=options.masks.probability,
        )
        for _ in range(groups)
    ]
    masks = {name: np.stack([group[name] for group in drawn]) for name in drawn[0]}

    def noise(views: int, side: int) -> np.ndarray:
        return rng.standard_normal((samples, views, side, side, 3), np.float32)

    return masks | {
        "masks": masks["masks"].reshape(samples, GLOBAL_NUMBER, -1),
        "global_crops": noise(GLOBAL_NUMBER, crops.global_size),
        "local_crops": noise(crops.local_number, crops.local_size),
    }


def matmul_speed(dtype: Any) -> float:
    """Returns the FLOP/s of a plain matrix product of noise on one device, the best of ten."""
    side = MATMUL_SIDES.get(jax.devices()[0].platform, MATMUL_SIDE)
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)  # products of zeros or ones run faster
    product = jax.jit(lambda x: x @ x)
    times = turns.take_turns({"product": turns.timed(lambda: jax.block_until_ready(product(x)))}, 10)
    return 2 * side**3 / min(times["product"])


def _comparable(options: argparse.Namespace) -> bool:
    """Tells whether the settings are those of the quoted figure."""
    shapes = (options.variant, options.batch, options.precision) == ("dinov3_vits16", 4, "float32")
    return shapes and jax.devices()[0].platform == "cpu"


def _cells(measured: dict[str, float], matmul_gflops: float) -> list[str]:
    """Formats one row of the table."""
    return [
        f"{measured['images_per_second']:.2f}",
        f"{measured['gflops']:.0f}",
        f"{measured['gflops'] / (matmul_gflops * len(jax.devices())):.0%}",
        f"{measured['mfu']:.1%}" if "mfu" in measured else "-",
        f"{measured['compile_seconds']:.0f} s",
        f"{measured['temporary_gib']:.1f} GiB",
        f"{measured['torch_images_per_second']:.2f}" if "ratio_to_torch" in measured else "-",
        f"{measured['ratio_to_torch']:.2f}" if "ratio_to_torch" in measured else "-",
    ]
