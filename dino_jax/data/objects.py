"""Images with the boxes or the masks of their objects, for tasks that find objects."""

import dataclasses
import functools
import os
import threading
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
from scipy import ndimage

from dino_jax.data.decode import IMAGE_EXTENSIONS
from dino_jax.data.dense import check_same_size, read_image, read_values
from dino_jax.data.files import Files, below, check_alone, in_folder, open_files, paired
from dino_jax.data.video import VOID, objects_of, open_videos

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""


@dataclasses.dataclass(frozen=True)
class ObjectImage:
    """One image.

    Attributes:
      image: uint8 `(height, width, 3)`.
      boxes: of its objects; one or more.
      mask: bool `(height, width)`, the pixels of all objects; None where only boxes are known.
    """

    name: str
    image: np.ndarray
    boxes: list[Box]
    mask: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Objects:
    """Images with objects; `read` gives the image at an index."""

    count: int
    read: Callable[[int], ObjectImage]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ObjectImage:
        """Reads an image.

        Raises:
          ValueError: when a file is damaged, sizes differ, or there is no object.
        """
        return self.read(index)


def open_objects(path: str | os.PathLike, *, year: int = 2017) -> Objects:
    """Opens a data set told by its folders:

    - VOC: `JPEGImages`, `Annotations/<id>.xml`, those in `ImageSets/Main/trainval.txt` (all without that list);
    - videos as `open_videos` reads them, every frame with an object an image of its own;
    - `images/<id>.jpg` and `masks/<id>.png`, where all that is not 0 is the object; in grey masks, the bright half.

    Args:
      year: of DAVIS, see `open_videos`.

    Raises:
      ValueError: when the layout is unknown, or an image has neither boxes nor a mask.
    """
    files = open_files(path)
    voc = below(files, "Annotations")
    if voc is not None and any(name.startswith(f"{voc}Annotations/") and name.endswith(".xml") for name in files.names):
        check_alone(files, "Annotations")
        return _voc(files, voc)
    if any("/frames/" in name for name in files.names) or below(files, "JPEGImages") is not None:
        return _videos(path, year)
    root = below(files, "images")
    if root is None:
        raise ValueError(
            f"{files.path} holds no objects in a known layout: it needs images and masks, videos, or the folders of VOC"
        )
    images = in_folder(files, f"{root}images", IMAGE_EXTENSIONS)
    pairs = paired("mask", images, in_folder(files, f"{root}masks", (".png",)))
    return Objects(len(pairs), lambda index: _masked(files, *pairs[index]))


def _masked(files: Files, image_name: str, mask_name: str) -> ObjectImage:
    mask = objects_of(read_values(files, mask_name))
    return _of_mask(files, image_name, mask_name, np.where(mask == VOID, VOID, mask > 0))


def _of_mask(files: Files, image_name: str, mask_name: str, mask: np.ndarray) -> ObjectImage:
    """Makes an image of a mask of objects 1, 2, ...; each has one box, whatever parts it is in."""
    image = read_image(files, image_name)
    check_same_size(files, mask_name, mask, image)
    objects = np.where(mask == VOID, 0, mask)
    places = [place for place in ndimage.find_objects(objects) if place is not None]
    if not places:
        raise ValueError(f"{mask_name} in {files.path} is empty: leave out images without an object")
    boxes = [(float(x.start), float(y.start), float(x.stop), float(y.stop)) for y, x in places]
    return ObjectImage(image_name, image, boxes, objects > 0)


def _videos(path: str | os.PathLike, year: int) -> Objects:
    """Lists all frames; those where the object is out of sight are left out."""
    videos = open_videos(path, year=year)
    cached, lock = functools.lru_cache(maxsize=2)(videos.masks), threading.Lock()  # frames are mostly read in order

    def masks(number: int) -> np.ndarray:
        with lock:  # or all threads would read the video that the first of them asks for
            return cached(number)

    found = [
        (number, frame)
        for number in range(len(videos))
        for frame, mask in enumerate(masks(number))
        if ((mask > 0) & (mask != VOID)).any()
    ]

    def read(index: int) -> ObjectImage:
        number, frame = found[index]
        video = videos.videos[number]
        return _of_mask(videos.files, video.frames[frame], video.masks[frame], masks(number)[frame])

    return Objects(len(found), read)


def _voc(files: Files, root: str) -> Objects:
    images = in_folder(files, f"{root}JPEGImages", IMAGE_EXTENSIONS)
    listed = f"{root}ImageSets/Main/trainval.txt"
    ids = files.read(listed).decode().split() if listed in files.names else sorted(images)
    lost = [name for name in ids if name not in images]
    if lost:
        raise ValueError(f"{files.path} lacks {lost[0]} of {listed} in JPEGImages ({len(lost)} missing)")
    notes = in_folder(files, f"{root}Annotations", (".xml",))
    pairs = paired("annotation", {name: images[name] for name in ids}, notes, all_of_second=False)
    return Objects(len(pairs), lambda index: _annotated(files, *pairs[index]))


def _annotated(files: Files, image_name: str, note_name: str) -> ObjectImage:
    """Reads the boxes of an XML file; VOC counts pixels from 1 and includes the last one.

    Boxes of parts (heads, hands, feet), which stand inside an object, are left out.
    """
    try:
        boxes = []
        for found in ElementTree.fromstring(files.read(note_name)).findall("object/bndbox"):
            left, top, right, bottom = (float(found.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append((left - 1, top - 1, right, bottom))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{note_name} in {files.path} is not an annotation of VOC ({error})") from None
    if not boxes:
        raise ValueError(f"{note_name} in {files.path} has no box: leave out images without an object")
    image = read_image(files, image_name)
    height, width = image.shape[:2]
    for left, top, right, bottom in boxes:
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(
                f"{note_name} in {files.path} has a box from ({left + 1:g}, {top + 1:g}) to ({right:g}, {bottom:g}) in "
                f"an image of {width} x {height}: correct it"
            )
    return ObjectImage(image_name, image, boxes, None)
