"""Videos as folders of frames, `<class>/<video>/<frame>.jpg`, for video classification."""

import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from dino_jax.data.files import Files, is_image, is_label, natural, open_files
from dino_jax.data.images import ImageFiles
from dino_jax.data.labelled import TEST_FOLDERS


@dataclasses.dataclass(frozen=True)
class Clips:
    """Videos of one split.

    Attributes:
      names: of the videos, `<class>/<video>`.
      labels: int `(videos,)`.
      class_names: of each label, the training classes.
      frames: files of each video, in the order of their names.
    """

    files: Files
    names: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    frames: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.names)

    def sampled(self, count: int) -> ImageFiles:
        """Returns `count` frames of every video, spread evenly over it; short videos repeat frames."""
        chosen = [video[index * len(video) // count] for video in self.frames for index in range(count)]
        return ImageFiles(self.files, chosen)

    def part(self, indices: Sequence[int] | np.ndarray) -> "Clips":
        """Returns the videos at `indices`."""
        names, frames = tuple(self.names[i] for i in indices), tuple(self.frames[i] for i in indices)
        return dataclasses.replace(self, names=names, labels=self.labels[np.asarray(indices, int)], frames=frames)


def open_clips(path: str, test_path: str = "") -> tuple[Clips, Clips]:
    """Opens training and test videos in folders or archives.

    Args:
      path: training videos, or a folder with `train/` and `val/` or `test/`.
      test_path: test videos; "" when `path` holds both.

    Raises:
      ValueError: no videos, a single class, or test videos of a class without training videos.
    """
    files = open_files(path)
    if test_path:
        train, test = _videos(files, files.names), _videos(other := open_files(test_path), other.names)
    else:
        other = files
        train, test = (_videos(files, _in_split(files, folders)) for folders in (("train",), TEST_FOLDERS))
    if not train or not test:
        lacking = "training" if not train else "test"
        raise ValueError(f"{path} has no {lacking} videos: give train/ and test/<class>/<video>/<frame>.jpg, or --test")
    names = tuple(sorted({label for label, _ in train}))
    if len(names) < 2:
        raise ValueError(f"{path} holds one class ({names[0]}): classification needs two or more")
    unknown = sorted({label for label, _ in test} - set(names))
    if unknown:
        raise ValueError(
            f"test videos of class {unknown[0]} have no training videos: give the class folders the same names"
        )
    return _clips(files, train, names), _clips(other, test, names)


def _in_split(files: Files, folders: Sequence[str]) -> list[str]:
    """Returns the files `<folder>/.../<class>/<video>/<frame>` in the first of the folders that there is."""
    for folder in folders:
        found = [name for name in files.names if folder in PurePosixPath(name).parts[:-3]]
        if found:
            return found
    return []


Videos = dict[tuple[str, str], tuple[str, ...]]
"""Frames by class and video."""


def _videos(files: Files, names: Sequence[str]) -> Videos:
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if is_image(name) and not is_label(name) and len(parts) >= 3:
            found.setdefault((parts[-3], parts[-2]), []).append(name)
    for (label, video), frames in found.items():
        folders = sorted({str(PurePosixPath(name).parent) for name in frames})
        if len(folders) > 1:
            raise ValueError(
                f"{files.path} has two videos named {label}/{video}, {folders[0]} and {folders[1]}: rename one"
            )
    return {video: tuple(sorted(frames, key=natural)) for video, frames in sorted(found.items())}


def _clips(files: Files, videos: Videos, class_names: tuple[str, ...]) -> Clips:
    labels = np.array([class_names.index(label) for label, _ in videos])
    return Clips(files, tuple(f"{a}/{b}" for a, b in videos), labels, class_names, tuple(videos.values()))
