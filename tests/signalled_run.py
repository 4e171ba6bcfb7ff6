"""Trains, and sends itself a signal at a certain place: `python -m tests.signalled_run SIGKILL recorded 5 ARGUMENTS`.

Places: `recorded` STEP, after the record of a step; `saving` STEP, when a checkpoint has some of its files.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax

from dino_jax import main
from dino_jax.checkpoint import Checkpoints
from dino_jax.record import Recorder


def install(number: int, where: str, step: int) -> None:
    """Makes the process send itself a signal at a place."""

    def strike() -> None:
        os.kill(os.getpid(), number)

    if where == "recorded":
        original = Recorder.after_step

        def after_step(self: Recorder, phase: Any, current: int, *rest: Any) -> None:
            original(self, phase, current, *rest)
            if current == step:
                strike()
            if current >= step and jax.process_count() > 1:
                time.sleep(0.5)  # the processes agree on a step to stop after, which takes them a moment

        Recorder.after_step = after_step
    elif where == "saving":
        save = Checkpoints.save

        def saving(self: Checkpoints, current: int, *rest: Any) -> None:
            if current == step:
                threading.Thread(target=wait_for_temporary, args=(self.folder,), daemon=True).start()
            save(self, current, *rest)

        def wait_for_temporary(folder: Path) -> None:
            while not any(folder.glob(f"{step}*/state*")):
                pass
            strike()

        Checkpoints.save = saving
    else:
        raise ValueError(f"unknown place {where!r}")


if __name__ == "__main__":
    install(getattr(signal, sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    sys.exit(main.main(sys.argv[4:]))
