"""Videos with object masks in every frame: DAVIS 2016 and 2017, and folders of frames and masks."""

import dataclasses
import os

import numpy as np

from dino_jax.data.decode import IMAGE_EXTENSIONS
from dino_jax.data.dense import check_same_size, read_image, read_values
from dino_jax.data.files import Files, below, in_folder, natural, open_files

VOID = 255
MOST_OBJECTS = 20  # in a frame; more labels than this, together with 255, mean a grey mask
# Folders of ImageSets with the list of a year; DAVIS 2017 brings both years, DAVIS 2016 its own under 480p.
LISTS = {2016: ("480p", "2016"), 2017: ("2017",)}


@dataclasses.dataclass(frozen=True)
class Video:
    """The files of one sequence, in the order of time."""

    name: str
    frames: list[str]
    masks: list[str]


@dataclasses.dataclass(frozen=True)
class Videos:
    """Sequences of frames with masks.

    Attributes:
      one_object: whether all objects of a mask count as object 1.
    """

    files: Files
    videos: list[Video]
    one_object: bool

    def __len__(self) -> int:
        return len(self.videos)

    def frames(self, index: int) -> np.ndarray:
        """Returns the frames of a sequence, uint8 `(frames, height, width, 3)`.

        Raises:
          ValueError: when a frame is damaged or differs in size.
        """
        video = self.videos[index]
        return self._stack("frame", video.frames, [read_image(self.files, name) for name in video.frames])

    def masks(self, index: int) -> np.ndarray:
        """Returns the object in each pixel, uint8 `(frames, height, width)`: 0 background, 1, 2, ..., 255 void.

        Raises:
          ValueError: when a mask is damaged, differs in size from its frame, or the first one is empty.
        """
        video = self.videos[index]
        masks = self._stack("mask", video.masks, [read_values(self.files, name) for name in video.masks])
        masks = objects_of(masks).astype(np.uint8)
        if self.one_object:
            masks = np.where(masks == VOID, masks, np.minimum(masks, 1))
        check_same_size(self.files, video.masks[0], masks[0], read_image(self.files, video.frames[0]))
        if not ((masks[0] > 0) & (masks[0] < VOID)).any():
            raise ValueError(f"{video.masks[0]} in {self.files.path} has no object: the first mask says what to follow")
        return masks

    def _stack(self, what: str, names: list[str], arrays: list[np.ndarray]) -> np.ndarray:
        for name, array in zip(names, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise ValueError(f"{name} in {self.files.path}: this {what} differs in size from {names[0]}")
            if array.max() > VOID:
                raise ValueError(f"{name} in {self.files.path} holds value {array.max()}: objects are 1, 2, ... to 254")
        return np.stack(arrays).astype(np.uint8)


def objects_of(values: np.ndarray) -> np.ndarray:
    """Returns the object in each pixel, 0 for none and `VOID`, of the values of a mask.

    255 is void beside objects 1, 2, ... (DAVIS 2017). Where it is the only value beside 0 (DAVIS 2016), or there are
    others above `MOST_OBJECTS`, which are soft edges, the mask is grey and its bright half is the one object.
    """
    others = values[(values > 0) & (values != VOID)]
    labels = others.size and (others.max() <= MOST_OBJECTS or not (values == VOID).any())
    return values if labels else (values > VOID // 2).astype(values.dtype)


def open_videos(path: str | os.PathLike, *, year: int = 2017) -> Videos:
    """Opens annotated videos, told by their folders:

    - DAVIS: `JPEGImages/480p/<sequence>`, `Annotations/480p/<sequence>`, those named in `ImageSets/<year>/val.txt`
      (2016: also `ImageSets/480p/val.txt`); all when there is no `ImageSets`;
    - `<sequence>/frames/<n>.jpg`, `<sequence>/masks/<n>.png`.

    Args:
      year: of DAVIS; in 2016, all objects of a mask are one.

    Raises:
      ValueError: when the layout is unknown, the list of the year is missing, a sequence has fewer than three frames,
        or a mask is missing.
    """
    if year not in LISTS:
        raise ValueError(f"DAVIS has no year {year}: choose among {', '.join(map(str, LISTS))}")
    files = open_files(path)
    davis = below(files, "JPEGImages")
    folders = _davis(files, davis, year) if davis is not None else _sequences(files)
    if not folders:
        raise ValueError(
            f"{files.path} holds no videos: it needs <sequence>/frames and <sequence>/masks, or the folders of DAVIS"
        )
    videos = [_video(files, name, *pair) for name, pair in sorted(folders.items())]
    return Videos(files, videos, one_object=year == 2016)


def _sequences(files: Files) -> dict[str, tuple[str, str]]:
    """Finds the folders that hold `frames`."""
    roots = sorted({name.partition("/frames/")[0] for name in files.names if "/frames/" in name})
    found: dict[str, tuple[str, str]] = {}
    for root in roots:
        name = root.rpartition("/")[2]
        if name in found:
            other = found[name][0].removesuffix("/frames")
            raise ValueError(f"{files.path} has two videos named {name}, {other} and {root}: rename one")
        found[name] = (f"{root}/frames", f"{root}/masks")
    return found


def _davis(files: Files, root: str, year: int) -> dict[str, tuple[str, str]]:
    images = "480p" if below(files, "JPEGImages/480p") is not None else "Full-Resolution"
    start = f"{root}JPEGImages/{images}/"
    names = {name.removeprefix(start).partition("/")[0] for name in files.names if name.startswith(start)}
    listed = _list_of(files, f"{root}ImageSets/", year)
    if listed is not None:
        words = files.read(listed).decode().split()
        # The list of 2016 holds the files themselves: /JPEGImages/480p/<sequence>/<n>.jpg and the annotation's.
        wanted = {word.split("/")[-2] if "/" in word else word for word in words}
        if wanted - names:
            raise ValueError(f"{files.path} lacks the frames of {min(wanted - names)}, which {listed} names")
        names = wanted
    return {name: (start + name, f"{root}Annotations/{images}/{name}") for name in names}


def _list_of(files: Files, folder: str, year: int) -> str | None:
    """Returns the file that names the sequences of a year; None when there are no lists at all."""
    there = [name for name in files.names if name.startswith(folder)]
    lists = {y: [f"{folder}{name}/val.txt" for name in names] for y, names in LISTS.items()}
    for listed in lists[year]:
        if listed in there:
            return listed
    if not there:
        return None
    fixes = [f"choose --year {y}" for y, names in lists.items() if set(names) & set(there)]
    raise ValueError(
        f"{files.path} lacks {lists[year][-1]}, which lists the sequences of {year}; there are {', '.join(there)}: "
        f"{' or '.join([*fixes, 'add the list'])}"
    )


def _video(files: Files, name: str, frames: str, masks: str) -> Video:
    found, annotated = in_folder(files, frames, IMAGE_EXTENSIONS), in_folder(files, masks, (".png",))
    missing = sorted(set(found) - set(annotated))
    if missing:
        raise ValueError(
            f"{files.path}: video {name} has {len(found)} frames and {len(annotated)} masks; "
            f"{masks}/{missing[0]}.png is missing: every frame needs a mask"
        )
    lost = sorted(set(annotated) - set(found))
    if lost:
        raise ValueError(f"{files.path}: video {name} lacks the frame of mask {masks}/{lost[0]}.png")
    if len(found) < 3:
        raise ValueError(f"{files.path}: video {name} has {len(found)} frames; tracking needs at least three")
    order = sorted(found, key=natural)
    return Video(name, [found[key] for key in order], [annotated[key] for key in order])
