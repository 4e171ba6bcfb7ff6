"""The record of images that could not be decoded: listed in the workdir, and a limit to how many are tolerated."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dino_jax.data.reading import why
from dino_jax.data.samples import ATTEMPTS, NOTHING_READABLE
from dino_jax.data.sources import Source
from dino_jax.data.whole import write_whole

# The share is not judged before this many images have been drawn (or all of them, if there are fewer): one early bad
# image says nothing.
LEAST_DRAWS = 1000
Note = Callable[[str], None]


class BadImages:
    """Counts the bad images of a run and lists each once, with its reason, in a file of the workdir.

    The file outlives restarts; the share is that among the images drawn since the last start.
    """

    def __init__(self, workdir: Path, source: Source, *, most: float, process_index: int = 0, note: Note = print):
        """Reads what earlier starts found.

        Args:
          workdir: receives `bad_images.jsonl`, or `bad_images_<process>.jsonl` from the second process on.
          source: the images that are trained on.
          most: the largest share of bad images that does not stop the run.
          process_index: of this training process.
          note: takes a line for the user, at the first image that is replaced.
        """
        self.file = workdir / (f"bad_images_{process_index}.jsonl" if process_index else "bad_images.jsonl")
        self._source = source
        self._most, self._note = most, note
        self._drawn = 0
        self._bad: set[int] = set()  # since the last start
        self._listed: dict[str, dict[str, Any]] = {}  # by name: an index may move when files are added
        if self.file.exists():
            try:
                content = self.file.read_bytes()
                whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line
                if whole != content:
                    write_whole(self.file, lambda file: file.write(whole))
                entries = [json.loads(line) for line in whole.splitlines()]
                self._listed = {entry["name"]: entry for entry in entries}
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self.file} is damaged: delete it, the images will be listed again") from None

    def __len__(self) -> int:
        return len(self._listed)

    def update(self, replaced: np.ndarray, ids: np.ndarray) -> None:
        """Takes in one batch.

        Args:
          replaced: int (batch,), index of the unreadable image whose place each sample took, else -1.
          ids: int (batch,), index of the image of each sample, `samples.NOTHING_READABLE` where none was found.

        Raises:
          ValueError: too large a share of the images is bad.
        """
        bad = replaced[replaced >= 0].tolist()
        self._drawn += len(replaced)
        self._bad.update(bad)
        new = {self._source.name(index): index for index in bad if self._source.name(index) not in self._listed}
        if new:
            known = bool(self._listed)
            entries = {
                name: {"id": index, "name": name, "reason": why(self._source, index)} for name, index in new.items()
            }
            self._append(entries.values())
            self._listed |= entries
            if not known:
                self._note(f"{self._example()} cannot be used, another image takes its place; see {self.file}")
        if (ids == NOTHING_READABLE).any():
            raise ValueError(
                f"almost no image can be read: {ATTEMPTS} draws in a row failed; see {self.file}, for example "
                f"{self._example()}"
            )
        seen = min(self._drawn, len(self._source))
        if seen >= min(LEAST_DRAWS, len(self._source)) and len(self._bad) > self._most * seen:
            raise ValueError(
                f"{len(self._bad)} of the first {seen} images drawn cannot be used, more than the share of "
                f"{self._most:g} that data.max_bad_share allows: see {self.file}, for example {self._example()}"
            )

    def _example(self) -> str:
        entry = next(reversed(self._listed.values()))
        return f"{entry['name']} ({entry['reason']})"

    def _append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(lines)
        except OSError as error:
            words = f"{error.strerror}: {self.file} could not be written; mend that and run the same command"
            raise OSError(error.errno, words) from None
