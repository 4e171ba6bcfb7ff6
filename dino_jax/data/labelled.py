"""Training and test images of a classification data set, with one numbering of the classes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dino_jax.data.decode import decode
from dino_jax.data.images import ImageFiles
from dino_jax.data.sources import Source, open_path
from dino_jax.data.subset import Chosen, part_of

TEST_FOLDERS = ("val", "test", "validation")  # ImageNet's name first


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A data set for classification.

    Attributes:
      train, test: their labels index the classes of the training images.
      class_names: of each label.
    """

    train: Source
    test: Source
    class_names: tuple[str, ...]


def open_labelled(
    path: str, test_path: str = "", *, limit: int | None = None, decode: Callable[..., Any] = decode
) -> Labelled:
    """Opens training and test images whose folders are their classes, or ArrayRecords of named classes.

    Args:
      path: training images (see `open_path`), or a folder with `train` and `val` or `test`, as ImageNet is laid out.
      test_path: test images; "" when `path` holds both.
      limit: at most this many images of each, spread evenly.
      decode: turns the bytes of a file into an array.

    Raises:
      ValueError: a path is missing, a class folder is empty, there are fewer than two, or only the test images have it.
    """
    train_place, test_place = (path, test_path) if test_path else _splits(path)
    train, test = (_open(place, decode) for place in (train_place, test_place))
    names = train.class_names
    if len(names) < 2:
        found = f"one class ({names[0]})" if names else "no class folders"
        raise ValueError(
            f"{train_place} holds {found}: classification needs <class>/<image> with two classes or more, or "
            "ArrayRecords with classes.txt beside them"
        )
    if not test.class_names:
        raise ValueError(f"{test_place} holds images without a class: name their classes as in {train_place}")
    test = with_classes(test, names, place=test_place, other=train_place)
    if limit is not None:
        if limit < 2:
            raise ValueError(f"a limit of {limit} images leaves no two classes: give 2 or more")
        train, test = part_of(train, limit), part_of(test, limit)
    return Labelled(train, test, names)


def with_classes(source: Source, names: tuple[str, ...], *, place: str, other: str) -> Source:
    """Returns the images of `source` with labels that index the classes `names`.

    Args:
      place, other: where these images and those of `names` are, for the message.

    Raises:
      ValueError: for a class that is not among `names`.
    """
    unknown = sorted(set(source.class_names) - set(names))
    if unknown:
        raise ValueError(f"{place} holds class {unknown[0]}, which {other} does not: give the classes the same names")
    return Chosen(source, list(range(len(source))), tuple(names.index(name) for name in source.class_names), names)


def _splits(path: str) -> tuple[str, str]:
    """Finds the folders of training and test images in one folder."""
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{place} does not exist: give a folder with train and val, or training images and --test")
    test = next((place / name for name in TEST_FOLDERS if (place / name).is_dir()), None)
    if test is None or not (place / "train").is_dir():
        raise ValueError(f"{place} holds no folders train and val (or test): give the test images with --test")
    return str(place / "train"), str(test)


def _open(path: str, decode: Callable[..., Any]) -> Source:
    source = open_path(path, decode=decode)
    place = Path(path).expanduser()
    if place.is_dir() and isinstance(source, ImageFiles) and source.class_names:
        folders = sorted(f.name for f in place.iterdir() if f.is_dir() and not f.name.startswith("."))
        empty = [name for name in folders if name not in source.class_names]
        if empty:
            raise ValueError(f"class {empty[0]} in {place} has no image: add some or remove the folder")
    return source
