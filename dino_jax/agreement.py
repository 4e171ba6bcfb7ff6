"""Makes sure that the processes of a run agree before they compute together."""

import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PATIENCE = 60.0  # seconds until a file that one host wrote is to be seen on all


def check(facts: Mapping[str, Any]) -> None:
    """Compares what every process has with what the first one has.

    Args:
      facts: anything with a `repr`, by a name for the user.

    Raises:
      ValueError: in every process, naming what differs and where.
    """
    if jax.process_count() == 1:
        return
    names = sorted(facts)
    # Names first: the arrays of processes that have other ones would not fit together.
    for part, words in ((["names of the settings"], [names]), (names, [facts[name] for name in names])):
        sums = np.array([zlib.crc32(repr(word).encode("utf-8", "surrogateescape")) for word in words], np.uint32)
        everywhere = multihost_utils.process_allgather(sums)
        if (differing := np.argwhere(everywhere != everywhere[0])).size:
            process, index = (int(number) for number in differing[0])
            raise ValueError(
                f"process {process} of {len(everywhere)} has a different value for {part[index]} than process 0: "
                "start all processes with the same command, and give them the same data"
            )


def check_shared(file: Path) -> None:
    """Makes sure that all processes see one file system.

    Args:
      file: in the folder that they share; the first process writes it.

    Raises:
      ValueError: in every process, when one does not see what the first wrote.
    """
    if jax.process_count() == 1:
        return
    if jax.process_index() == 0:
        file.write_text(os.urandom(8).hex())
    token = np.frombuffer(file.read_bytes() if jax.process_index() == 0 else bytes(16), np.uint8)
    written = np.asarray(multihost_utils.broadcast_one_to_all(token)).astype(np.uint8).tobytes()
    until = time.monotonic() + PATIENCE
    while not (seen := file.exists() and file.read_bytes() == written) and time.monotonic() < until:
        time.sleep(1)
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.array(seen)))
    if blind.size:
        raise ValueError(
            f"process {blind[0]} does not see the files that process 0 writes into --workdir {file.parent}: "
            "give a folder on a file system that all hosts share"
        )
    if jax.process_index() == 0:
        file.unlink()
