"""Images with a class for every pixel, in the layouts of their data sets."""

import dataclasses
import io
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from dino_jax.data.decode import IMAGE_EXTENSIONS, BadImage, decode
from dino_jax.data.files import Files, below, check_alone, in_folder, open_files, paired

IGNORE = 255
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign or symbol", "fence", "car", "pedestrian"),
    "bicyclist",
)
ADE_CLASSES = 150
ADE_SPLITS = {"train": "training", "val": "validation", "test": "validation"}


@dataclasses.dataclass(frozen=True)
class MaskPairs:
    """Images with a class map.

    Attributes:
      pairs: names of the image's and the mask's file.
      class_names: of labels 0, 1, ...; 255 is ignored.
      first: value of label 0 in the files.
      ignored: value of what is ignored in the files.
    """

    files: Files
    pairs: list[tuple[str, str]]
    class_names: tuple[str, ...]
    first: int = 0
    ignored: int = IGNORE

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Returns the image's file."""
        return self.pairs[index][0]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image uint8 `(height, width, 3)` and its labels uint8 `(height, width)`.

        Raises:
          ValueError: when a file is damaged, sizes differ, or a label is out of range.
        """
        image, mask = read_image(self.files, self.pairs[index][0]), self.mask(index)
        check_same_size(self.files, self.pairs[index][1], mask, image)
        return image, mask

    def mask(self, index: int) -> np.ndarray:
        """Returns the labels alone; raises as `__getitem__` does."""
        name = self.pairs[index][1]
        values, last = read_values(self.files, name), self.first + len(self.class_names) - 1
        ignored = values == self.ignored
        wrong = values[~ignored & ((values < self.first) | (values > last))]
        if wrong.size:
            raise ValueError(
                f"{name} in {self.files.path} holds value {wrong[0]}, but there are {len(self.class_names)} classes "
                f"({self.first} to {last}; {self.ignored} is ignored): correct the mask or the class list"
            )
        return np.where(ignored, IGNORE, values - self.first).astype(np.uint8)


def unseen_classes(class_names: Sequence[str], masks: Iterable[np.ndarray]) -> list[str]:
    """Returns the names of the classes that no mask holds."""
    seen: set[int] = set()
    for mask in masks:
        seen.update(np.unique(mask).tolist())
    return [name for label, name in enumerate(class_names) if label not in seen]


def open_masks(path: str | os.PathLike, split: str) -> MaskPairs:
    """Opens a data set for semantic segmentation, told by its folders:

    - pairs: `{train,val,test}/images/<id>.jpg`, `.../masks/<id>.png`, optionally `classes.txt` of `<label> <name>`;
    - CamVid as SegNet has it: `{train,val,test}`, `{train,val,test}annot`; value 11 is ignored;
    - ADE20K: `images/{training,validation}`, `annotations/{training,validation}`; value 0 is ignored;
    - VOC2012: `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation/{train,val}.txt`; for training, the longer
      `trainaug.txt` with `SegmentationClassAug` where both are there.

    Args:
      split: "train", "val" or "test", of VOC any of its lists; ADE20K and VOC take "test" for their validation set.

    Raises:
      ValueError: when the layout or split is unknown, an image has no mask, or there are fewer than two classes or more
        than 255.
    """
    files = open_files(path)
    voc, ade, camvid = (below(files, folder) for folder in ("SegmentationClass", "annotations", "trainannot"))
    if voc is not None:
        check_alone(files, "SegmentationClass")
        data = _voc(files, voc, split)
    elif ade is not None:
        data = _ade(files, ade, split)
    elif camvid is not None:
        data = _camvid(files, camvid, split)
    else:
        data = _pairs(files, split)
    if not data.pairs:
        raise ValueError(f"{files.path} has no images in its split {split!r}")
    if len(data.class_names) < 2:
        raise ValueError(f"{files.path} has {len(data.class_names)} class: segmentation needs two or more")
    if len(data.class_names) > IGNORE:
        raise ValueError(f"{files.path} has {len(data.class_names)} classes: labels must be 0 to {IGNORE - 1}")
    return data


def _pairs(files: Files, split: str) -> MaskPairs:
    root = below(files, f"{split}/images")
    if root is None:
        raise ValueError(
            f"{files.path} is not laid out as segmentation data: it needs {split}/images and {split}/masks, "
            "or the folders of CamVid, ADE20K or VOC2012"
        )
    images = in_folder(files, f"{root}{split}/images", IMAGE_EXTENSIONS)
    pairs = paired("mask", images, in_folder(files, f"{root}{split}/masks", (".png",)))
    listed = f"{root}classes.txt"
    names = _class_list(files, listed) if listed in files.names else _counted_classes(files, root)
    return MaskPairs(files, pairs, names)


def _class_list(files: Files, name: str) -> tuple[str, ...]:
    """Reads lines of `<label> <name>`; a line for the ignored label is left out."""
    lines = [line.split(maxsplit=1) for line in files.read(name).decode().splitlines() if line.strip()]
    if any(len(line) != 2 or not line[0].isdigit() for line in lines):
        raise ValueError(f"{name} in {files.path}: every line must be <label> <name>")
    named = {int(label): title.strip() for label, title in lines if int(label) != IGNORE}
    if sorted(named) != list(range(len(named))):
        raise ValueError(f"{name} in {files.path}: labels must be 0, 1, 2, ... without a gap, got {sorted(named)}")
    return tuple(named[label] for label in range(len(named)))


def _counted_classes(files: Files, root: str) -> tuple[str, ...]:
    """Reads every training mask for the largest label."""
    masks = in_folder(files, f"{root}train/masks", (".png",)).values()
    labels = {int(label) for name in masks for label in np.unique(read_values(files, name))} - {IGNORE}
    if not labels:
        raise ValueError(f"{files.path} has neither classes.txt nor labelled pixels in train/masks")
    return tuple(f"class {label}" for label in range(max(labels) + 1))


def _camvid(files: Files, root: str, split: str) -> MaskPairs:
    images = in_folder(files, f"{root}{split}", IMAGE_EXTENSIONS)
    pairs = paired("mask", images, in_folder(files, f"{root}{split}annot", (".png",)))
    return MaskPairs(files, pairs, CAMVID_CLASSES, ignored=len(CAMVID_CLASSES))


def _ade(files: Files, root: str, split: str) -> MaskPairs:
    if split not in ADE_SPLITS:
        raise ValueError(f"ADE20K has no split {split!r}: use {', '.join(ADE_SPLITS)}")
    folder = ADE_SPLITS[split]
    images = in_folder(files, f"{root}images/{folder}", IMAGE_EXTENSIONS)
    pairs = paired("annotation", images, in_folder(files, f"{root}annotations/{folder}", (".png",)))
    listed = f"{root}objectInfo150.txt"
    names = tuple(f"class {label}" for label in range(ADE_CLASSES))
    if listed in files.names:
        rows = [re.split(r"\t+", line) for line in files.read(listed).decode().splitlines()[1:] if line.strip()]
        names = tuple(row[-1].split(",")[0].strip() for row in rows)
    # Value 0 is "other"; the classes are 1 to 150.
    return MaskPairs(files, pairs, names, first=1, ignored=0)


def _voc(files: Files, root: str, split: str) -> MaskPairs:
    name, folder = ("val" if split == "test" else split), "SegmentationClass"
    lists = f"{root}ImageSets/Segmentation"
    if name == "train" and f"{lists}/trainaug.txt" in files.names and below(files, f"{folder}Aug") is not None:
        name, folder = "trainaug", f"{folder}Aug"
    listed = f"{lists}/{name}.txt"
    if listed not in files.names:
        raise ValueError(f"{files.path} has no {listed}, which lists the images of the split {split!r}")
    masks = in_folder(files, f"{root}{folder}", (".png",))
    images = in_folder(files, f"{root}JPEGImages", IMAGE_EXTENSIONS)
    ids = files.read(listed).decode().split()
    lost = [name for name in ids if name not in images]
    if lost:
        raise ValueError(f"{files.path} lacks {lost[0]} of {listed} in JPEGImages ({len(lost)} missing)")
    pairs = paired("mask", {name: images[name] for name in ids}, masks, all_of_second=False)
    return MaskPairs(files, pairs, VOC_CLASSES)


def check_same_size(files: Files, name: str, mask: np.ndarray, image: np.ndarray) -> None:
    """Raises ValueError unless the mask of that name is as large as its image."""
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"{name} in {files.path} is {mask.shape[1]} x {mask.shape[0]} pixels, its image {image.shape[1]} x "
            f"{image.shape[0]}: a mask must be as large as its image"
        )


def read_image(files: Files, name: str) -> np.ndarray:
    """Decodes a photograph, uint8 `(height, width, 3)`.

    Raises:
      ValueError: when it cannot be used.
    """
    try:
        return decode(files.read(name))
    except BadImage as error:
        raise ValueError(f"{name} in {files.path}: {error}") from None


def read_values(files: Files, name: str) -> np.ndarray:
    """Decodes as `read_png`, to int32."""
    return read_png(files, name).astype(np.int32)


def read_png(files: Files, name: str) -> np.ndarray:
    """Decodes a palette or grey PNG to its values `(height, width)`, of more than a byte each if the file has 16 bits.

    Palette colours are not looked at.

    Raises:
      ValueError: when it is damaged, or has colours instead of labels.
    """
    try:
        with Image.open(io.BytesIO(files.read(name))) as image:
            image.load()
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise ValueError(f"mode {image.mode}: save it as a palette or grey PNG that holds the values")
            return np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError(f"{name} in {files.path} cannot be read: it is no image") from None
    except Exception as error:  # damaged files make Pillow's plug-ins raise nearly every built-in exception
        raise ValueError(f"{name} in {files.path} cannot be read: {' '.join(str(error).split())}") from None
