"""The folder of a run: held by one process at a time, for one configuration."""

import fcntl
import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dino_jax.data.subset import evenly
from dino_jax.data.whole import complete_steps, write_json
from dino_jax.metrics import read_metrics
from dino_jax.recipe import flatten

# These change where and how fast a run computes, what it reports and what it tolerates, but not what it trains; they
# may differ when it continues.
FREE = (
    *("mesh.", "remat", "model.attention", "checkpoint.", "log.pictures", "nonfinite_limit", "eval."),
    *("data.workers", "data.path", "data.homogeneous_path", "data.test_path", "data.max_bad_share"),
)
# Unless a phase takes the snapshot with the best dense score: scores of other images cannot be compared.
OF_DENSE_SCORES = ("eval.dense.path", "eval.dense.images")
# What may be in another place for each process; config.json keeps that of the first.
PATHS_OF_IMAGES = ("data.path", "data.test_path", "data.homogeneous_path", "eval.knn.path", "eval.dense.path")
PLACES = (*PATHS_OF_IMAGES, "init.weights")
IMAGES_COMPARED = 1000


class Workdir:
    """A run's folder, locked as long as it is open (the lock goes with the process, however that ends)."""

    # The longest `checkpoint.every` that this run has had, in steps; known once a configuration was adopted.
    _longest_period: int

    def __init__(self, folder: str | Path):
        """Creates and locks the folder.

        Raises:
          ValueError: when another process holds it, or it cannot be made.
        """
        self.path = Path(folder).expanduser()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise ValueError(f"--workdir {self.path} cannot be used: {error.strerror}") from None
        if jax.process_index() == 0:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.seek(0)
                holder = self._lock.read().strip() or "another process"
                raise ValueError(
                    f"--workdir {self.path} is in use by {holder}: wait for it, stop it, or choose another folder"
                ) from None
            except OSError as error:
                print(
                    f"--workdir {self.path} is on a file system that cannot lock ({error.strerror}): "
                    "let no other process use it",
                    file=sys.stderr,
                )
            try:
                self._lock.truncate(0)
                self._lock.write(f"process {os.getpid()} on {os.uname().nodename}")
                self._lock.flush()
            except OSError as error:
                raise OSError(error.errno, f"--workdir {self.path} cannot be written: {error.strerror}") from None

    def adopt(self, config: ConfigDict) -> str:
        """Stores the configuration in config.json, or checks that the one there says the same.

        Phases that have not begun may differ, and others may follow. A run that failed before its first step left
        nothing to protect: its configuration is replaced.

        Returns:
          What differs in phases to come, in words; "" if nothing does.

        Raises:
          ValueError: listing the keys that differ otherwise.
        """
        file = self.path / "config.json"
        now = json.loads(json.dumps(flatten(config)))
        self._longest_period = now["checkpoint.every"]
        words = ""
        if self.begun() and not file.exists():
            raise ValueError(f"{file} is missing, but a run has begun there: restore it, or use another workdir")
        if self.begun():
            try:
                before = json.loads(file.read_text())
                begun, had = self._begun_phases(before), _parts(before)
                self._longest_period = max(before["checkpoint.every"], now["checkpoint.every"])
            except (ValueError, AttributeError, KeyError, TypeError):  # no JSON, or not what `flatten` gives
                raise ValueError(f"{file} is damaged: restore it, or start in a new workdir") from None
            words = self._compare(before, now, begun)
            needs = _parts(now)
            for part in sorted(had ^ needs):
                lack = f"lack the {part}, which a phase now needs"
                hold = f"hold the {part}, which no phase needs any more"
                raise ValueError(
                    f"--workdir {self.path}: its checkpoints {lack if part in needs else hold}: leave loss.ibot and "
                    "targets of later phases as they were, or use another workdir"
                )
        if jax.process_index() == 0:
            write_json(file, now)
        return words

    def _compare(self, before: dict[str, Any], now: dict[str, Any], begun: list[str]) -> str:
        """Compares the configuration of the run with one to continue it, see `adopt`.

        Args:
          begun: the phases of the former that have begun.
        """
        own = PLACES if jax.process_index() else ()
        differing = [key for key in sorted({*before, *now}) if key not in own and _differs(key, before, now)]
        to_begin = self._begun_phases(now)
        fixed = tuple(f"phases.{name}." for name in {*begun, *to_begin})
        changed: list[str] = []
        if begun == to_begin:
            changed = [key for key in differing if key.startswith("phases.") and not key.startswith(fixed)]
            differing = [key for key in differing if key not in changed and key != "phase_order"]
        choosing = any(now[f"phases.{name}.gram.teacher"] == "best_dense" for name in now["phase_order"])
        differing = [key for key in differing if not _is_free(key) or (choosing and key.startswith(OF_DENSE_SCORES))]
        if differing:
            raise ValueError(
                f"--workdir {self.path} belongs to a run with another config "
                f"({_compared(differing, before, now)}): use the same values, or another workdir"
            )
        if not changed:
            return ""
        new = [name for name in now["phase_order"] if name not in before["phase_order"]]
        edited = [key for key in changed if not key.startswith(tuple(f"phases.{name}." for name in new))]
        words = [f"phase {name} is new" for name in new] + ([_compared(edited, before, now)] if edited else [])
        return "; ".join(words)

    def _begun_phases(self, values: dict[str, Any]) -> list[str]:
        """Lists the phases of a configuration that began before the newest checkpoint."""
        saved = max(complete_steps(self.path / "checkpoints"), default=0)
        begun, first = [], 0
        for name in values.get("phase_order", ()):
            if first >= max(saved, 1):
                break
            begun.append(name)
            first += values[f"phases.{name}.steps"]
        return begun

    def check_new(self) -> None:
        """Makes sure that a run without a checkpoint has not had any; call it after `adopt`.

        Raises:
          ValueError: when it has results, or records that must have been followed by a checkpoint.
        """
        records = read_metrics(self.path / "metrics.jsonl")
        finished = (self.path / "results.json").exists()
        # The first save is waited for when the second begins.
        if finished or (records and records[-1]["step"] > 2 * self._longest_period):
            there = ["metrics.jsonl"] * bool(records) + ["results.json"] * finished
            raise ValueError(
                f"--workdir {self.path} holds {' and '.join(there)}, but no checkpoint: restore checkpoints/, or "
                f"delete {'both' if len(there) > 1 else 'it'} to train anew"
            )

    def begun(self) -> bool:
        """Tells whether a run has taken a step here, with the configuration that `adopt` compares."""
        metrics = self.path / "metrics.jsonl"
        return (metrics.exists() and metrics.stat().st_size > 0) or any(self.path.glob("checkpoints/*"))

    def adopt_images(self, count: int, name: Callable[[int], str]) -> None:
        """Stores how many training images there are and a checksum of some names, or checks what is stored.

        The order in which images are drawn depends on their number: with others, the run would not be the same.

        Args:
          count: images.
          name: of an image by its index.

        Raises:
          ValueError: when a run that has begun had other images.
        """
        file = self.path / "images.json"
        names = "\n".join(name(index) for index in evenly(count, IMAGES_COMPARED)).encode("utf-8", "surrogateescape")
        now = {"images": count, "names": zlib.crc32(names)}
        if self.begun() and file.exists():
            try:
                before = json.loads(file.read_text())
                different, images = before != now, before["images"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{file} is damaged: delete it, if the images are the same as before") from None
            if different:
                raise ValueError(
                    f"--workdir {self.path} was trained on {images} images, now there are {count}"
                    f"{', with other names' if images == count else ''}: put the same images back at data.path, "
                    f"or delete {file} to continue with these, in another order"
                )
        if jax.process_index() == 0:
            write_json(file, now)

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes results.json."""
        if jax.process_index() == 0:
            write_json(self.path / "results.json", results)

    def forget_results(self) -> None:
        """Deletes results.json, as the run goes on."""
        if jax.process_index() == 0:
            (self.path / "results.json").unlink(missing_ok=True)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()


def _parts(values: dict[str, Any]) -> set[str]:
    """Names what a train state holds only if some phase, begun or to come, needs it; see `build`."""
    parts = set()
    for phase in (f"phases.{name}." for name in values["phase_order"]):
        heads = ["DINO", "iBOT"] if values[f"{phase}loss.ibot"] else ["DINO"]
        if "iBOT" in heads and not values["share_head"]:
            parts.add("iBOT head")
        if values[f"{phase}targets"] == "centering":
            parts |= {f"centers of {head} scores" for head in heads}
    return parts


def _is_free(key: str) -> bool:
    """Tells whether a value does not change what a run trains."""
    return key.startswith(FREE) or (key.startswith("phases.") and key.endswith(".remat"))


def _differs(key: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Tells whether a value changed; an option that an earlier version did not have is off in its runs."""
    if key in before and key in now:
        return before[key] != now[key]
    return bool(before.get(key) or now.get(key))


def _compared(keys: list[str], before: dict[str, Any], now: dict[str, Any]) -> str:
    """Says what keys were and are, the first eight of them."""
    shown = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys[:8])
    return shown + (f"; and {len(keys) - 8} more" if len(keys) > 8 else "")
