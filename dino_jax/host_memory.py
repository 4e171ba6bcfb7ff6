"""How much memory this process may use, and whether arrays on the host will fit."""

import os
from pathlib import Path

GIB = 2**30


def check(needed: int, what: str, fix: str) -> None:
    """Refuses arrays that cannot fit before the work that fills them.

    Args:
      needed: bytes.
      what, fix: what they are, and how to need less, in words.

    Raises:
      ValueError: when the process may not use as much; what fits may still fail, as other things take room too.
    """
    there = of_process()
    if needed > there:
        raise ValueError(f"{what} take {needed / GIB:.1f} GiB of memory, but only {there / GIB:.1f} are there: {fix}")


def of_process() -> int:
    """Returns the bytes that this process may use: the machine's memory, or the limit of its container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *cgroup_limits()])


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Lists the memory limits of the control groups (Linux, version 1 or 2) that this process is in; none elsewhere."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    files: set[Path] = set()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A limit holds for all groups below; inside a container the path may be the host's, and the root its own.
        own = base / path.lstrip("/")
        files |= {folder / name for folder in (own, *own.parents) if folder.is_relative_to(base)}
    texts = [file.read_text().strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdecimal()]
