"""Sets a process up before JAX starts: memory on CPUs and GPUs, and which code XLA makes for CPUs."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# Options of glibc's mallopt, and what each shall be: one heap for all threads, no mappings of their own for large
# arrays, and nothing given back to the system.
KEEP_MEMORY = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
MEMORY_SHARE = "0.9"  # the rest is for CUDA's own libraries
OLDER_LOOPS = "xla_cpu_use_fusion_emitters"
OLDER_LOOPS_FROM = 128  # hidden features of a head; a smaller one takes the older code minutes to compile


def prepare_cpu() -> None:
    """Sets a process up for computing on a CPU; call it before JAX starts. With an accelerator, it changes nothing.

    XLA allocates a step's temporary arrays anew for every step. Under Linux, glibc would return them in between, and
    the system would map and clear each page again: that took a fifth of a ViT-S step's time on two cores.
    """
    if _accelerated() or sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # other C libraries have none
        for option, value in KEEP_MEMORY.values():
            library.mallopt(option, value)


def choose_loops(hidden: int = OLDER_LOOPS_FROM) -> None:
    """Chooses XLA's code for fused loops on a CPU; call it before JAX computes.

    The older one compiles in half the time of the newer, and ran the quickstart's Gram phase 1.4 times as fast in 0.9
    instead of 1.5 GiB (jaxlib 0.10.2). XLA refuses unknown flags, so other versions get none.

    Args:
      hidden: features of the smallest head that is trained.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    older = importlib.metadata.version("jaxlib").startswith("0.10.") and hidden >= OLDER_LOOPS_FROM
    if older and OLDER_LOOPS not in flags and not _accelerated():
        os.environ["XLA_FLAGS"] = f"{flags} --{OLDER_LOOPS}=false".strip()


def reserve_memory() -> None:
    """Lets JAX use more of a GPU's memory than three quarters, its default, unless a variable says how much."""
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = MEMORY_SHARE


def _accelerated() -> bool:
    """Tells whether JAX would compute on something else than a CPU."""
    there = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return bool(there) and os.environ.get("JAX_PLATFORMS") != "cpu"
