"""Linear segmentation on frozen patch features: DINOv3, arXiv 2508.10104, section 6.1.1."""

import argparse
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from dino_jax import host_memory
from dino_jax.data.dense import IGNORE, MaskPairs, open_masks, unseen_classes
from dino_jax.data.fit import resize
from dino_jax.data.reading import read_ahead
from dino_jax.data.subset import evenly
from dino_jax.data.windows import cut_windows, merge, multiple, nearest, patch_multiple, shorter_side
from dino_jax.evals import patch_head
from dino_jax.evals.segmentation import (
    RIDGE,
    class_ious,
    confusion,
    linear_patch_probe,
    mean_iou,
    pixel_accuracy,
    upsample,
)
from dino_jax.models import Extractor
from dino_jax.models.resize import resize_matrix
from dino_jax.pictures.dense import masks as draw_masks
from dino_jax.tasks import Result, head_training, patches, refuse
from dino_jax.tasks.patches import PatchFeatures

SCALES = (0.5, 2.0)  # random size of the training crops, as in the references' configurations
STRIDE = 2 / 3  # of the window, 341 for 512
CHUNK = 8  # test images whose windows are computed together
PICTURES = 6

Head = Callable[[np.ndarray], jax.Array]
"""Maps patches `(images, rows, columns, dim)` to logits `(images, rows, columns, classes)`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    layouts = "{train,val,test}/{images,masks}, CamVid (SegNet), ADE20K or VOC2012: a folder, tar or tar.gz"
    patches.add_arguments(parser, data=layouts, size=512)
    parser.add_argument("--split", default="val", help="split on which the head is tested")
    parser.add_argument("--crop", type=int, default=512, help="side of training crops and test windows in pixels")
    parser.add_argument(
        "--head",
        choices=["trained", "closed"],
        default="trained",
        help="closed: a linear discriminant in closed form, without training",
    )
    parser.add_argument(
        "--ridge", type=float, default=RIDGE, help="ridge of the closed form, as a share of the variance"
    )
    head_training.add_arguments(parser, steps=40_000, learning_rate=1e-3)


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Trains a linear head on patches and scores its class maps on the test images.

    Raises:
      ValueError: wrong data, or a model without patches.
    """
    patches.check(options, "crop", "steps")
    if not 0 < options.ridge < math.inf:
        raise ValueError(f"--ridge {options.ridge:g} must be a number above 0")
    if options.head == "closed":
        refuse(options, "steps learning_rate weight_decay views seed cache", "with --head closed, which is not trained")
    else:
        refuse(options, "ridge", "without --head closed")
    train, test = open_masks(options.data, "train"), open_masks(options.data, options.split)
    names = train.class_names
    # What is wrong with the data is said before the training, not after it.
    unseen = unseen_classes(names, _masks(train, options, "training masks"))
    if len(unseen) == len(names):
        raise ValueError(f"every pixel of {options.data}, split 'train', is ignored: nothing can be learnt")
    labelled = [(mask != IGNORE).any() for mask in _masks(test, options, f"{options.split} masks")]
    if not any(labelled):
        raise ValueError(f"every pixel of {options.data}, split {options.split!r}, is ignored: nothing can be scored")
    numbers: dict[str, float] = {}
    found = {}
    for features in patches.compared(model, options):
        head = _closed_head(features, train, options) if options.head == "closed" else _train(features, train, options)
        counts, shown = _test(features, head, test, options)
        found[features.name] = counts, shown
        numbers |= _numbers(counts, names, features.key)
    rows = _rows({name: counts for name, (counts, _) in found.items()}, names)
    if unseen:
        some = ", ".join(unseen[:3]) + ", ..." * (len(unseen) > 3)
        rows.append([f"without a training pixel: {some}", *[str(len(unseen))] * len(found)])
    images, truth, _ = zip(*next(iter(found.values()))[1], strict=True)
    title = f"{options.split}: truth and linear segmentation, mIoU {numbers['segmentation/miou']:.1%}"
    maps = {name: [predicted for _, _, predicted in shown] for name, (_, shown) in found.items()}
    picture = draw_masks(images, {"truth": truth} | maps, names, folder / "segmentation.png", title=title)
    return Result(numbers, rows, [picture])


def _masks(data: MaskPairs, options: argparse.Namespace, name: str) -> Iterator[np.ndarray]:
    """Yields the masks of the images that are used, and shows how far it is."""
    indices = evenly(len(data), options.limit)
    for _, mask in tqdm(read_ahead(data.__getitem__, indices), total=len(indices), unit=" images", desc=name):
        yield mask


def _train(features: PatchFeatures, data: MaskPairs, options: argparse.Namespace) -> Head:
    side = multiple(options.crop, features.patch_size)
    crops = head_training.Crops(size=(side, side), side=options.size, scale=SCALES, fill=IGNORE)
    indices = evenly(len(data), options.limit)
    classes, loss = len(data.class_names), patch_head.cross_entropy
    head = head_training.train_head(features, data, indices, crops=crops, outputs=classes, loss=loss, options=options)
    return functools.partial(_apply_head, head)


_apply_head = jax.jit(patch_head.apply_head)


def _closed_head(features: PatchFeatures, data: MaskPairs, options: argparse.Namespace) -> Head:
    """Fits the closed form on whole images, all at the size of the first."""
    indices = evenly(len(data), options.limit)
    count, size = len(indices), patch_multiple(data[0][0].shape[:2], options.size, features.patch_size)
    pixels = math.prod(size)
    # The features are joined at the end, so they are there twice.
    needed = count * (2 * 4 * pixels // features.patch_size**2 * features.width + 4 * pixels)
    what = f"{count} images and their features (--head closed)"
    host_memory.check(needed, what, "set --limit or a smaller --size")
    images, labels = np.empty((count, *size, 3), np.uint8), np.empty((count, *size), np.uint8)
    for place, (image, mask) in enumerate(read_ahead(data.__getitem__, indices)):
        images[place], labels[place] = resize(image, size), nearest(mask, size)
    weights, bias = linear_patch_probe(features(images), labels, classes=len(data.class_names), ridge=options.ridge)
    return lambda array: jax.numpy.asarray(array @ weights + bias)


def _test(
    features: PatchFeatures, head: Head, data: MaskPairs, options: argparse.Namespace
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Returns the confusion of all pixels, and images, masks and predicted masks to be shown."""
    indices = evenly(len(data), options.limit)
    wanted = {indices[place] for place in evenly(len(indices), PICTURES)}
    classes = len(data.class_names)
    counts, shown = np.zeros((classes, classes), np.int64), []
    reading = read_ahead(data.__getitem__, indices, ahead=CHUNK)
    for start in range(0, len(indices), CHUNK):
        part = indices[start : start + CHUNK]
        pairs = [next(reading) for _ in part]
        maps = class_maps(features, head, [image for image, _ in pairs], side=options.size, crop=options.crop)
        for index, (image, mask), logits in zip(part, pairs, maps, strict=True):
            predicted = _enlarged(logits, mask.shape).argmax(axis=-1)
            counts += confusion(mask, predicted, classes=classes)
            if index in wanted:
                shown.append((image, mask, predicted))
    return counts, shown


def class_maps(
    features: PatchFeatures, head: Head, images: list[np.ndarray], *, side: int, crop: int
) -> list[np.ndarray]:
    """Computes logits of images by sliding windows; overlapping windows are averaged.

    Args:
      images: uint8 `(height, width, 3)`, of any sizes.
      side: shorter side to which images are resized first; 0 keeps theirs.
      crop: side of the windows, rounded to whole patches; smaller where the image is.

    Returns:
      `(height, width, classes)` for each image, at its resized size.
    """
    resized = [resize(image, shorter_side(image.shape[:2], side)) for image in images]
    cuts: list[list[tuple[int, int]]] = []
    groups: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
    for number, image in enumerate(resized):
        height, width = (multiple(min(crop, length), features.patch_size) for length in image.shape[:2])
        window, stride = (height, width), (round(height * STRIDE), round(width * STRIDE))
        parts, places = cut_windows(image, window, stride)
        groups.setdefault(window, []).append((number, parts))
        cuts.append(places)
    logits: list[np.ndarray] = [np.empty(0)] * len(images)
    for window, group in groups.items():
        maps = head(features(np.concatenate([parts for _, parts in group])))
        ends = np.cumsum([len(parts) for _, parts in group])
        for (number, _), part in zip(group, np.split(np.asarray(_to_window(maps, window)), ends[:-1]), strict=True):
            logits[number] = part
    return [merge(part, places, image.shape[:2]) for part, places, image in zip(logits, cuts, resized, strict=True)]


_to_window = jax.jit(upsample, static_argnames="size")


def _enlarged(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resizes `(height, width, classes)` bilinearly; on the host, as images come in many sizes."""
    if maps.shape[:2] == size:
        return maps
    rows, columns = (
        resize_matrix(old, new, antialias=False, method="bilinear")
        for old, new in zip(maps.shape[:2], size, strict=True)
    )
    return np.einsum("ih,hwc,jw->ijc", rows, maps, columns, optimize=True)


def _numbers(counts: np.ndarray, names: tuple[str, ...], key: str) -> dict[str, float]:
    """Returns the scores by name; classes in neither truth nor prediction have none."""
    found = {"miou": mean_iou(counts), "pixel_accuracy": pixel_accuracy(counts)}
    ious = {f"iou_{name.replace(' ', '_')}": iou for name, iou in zip(names, class_ious(counts), strict=True)}
    return {f"segmentation/{key}{name}": float(value) for name, value in (found | ious).items() if value == value}


def _rows(found: dict[str, np.ndarray], names: tuple[str, ...]) -> list[list[str | float]]:
    """Lists the mean and each class, the features side by side."""
    rows: list[list[str | float]] = [["segmentation", *found]]
    rows.append(["mean IoU", *map(mean_iou, found.values())])
    rows.append(["pixel accuracy", *map(pixel_accuracy, found.values())])
    for label, name in enumerate(names):
        ious = [float(class_ious(counts)[label]) for counts in found.values()]
        rows.append([f"IoU of {name}", *("absent" if iou != iou else iou for iou in ious)])
    return rows
