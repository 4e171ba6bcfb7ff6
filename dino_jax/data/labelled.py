"""Training and test images of a classification data set, with one numbering of the classes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dino_jax.data.arrayrecord import EXTENSIONS
from dino_jax.data.decode import decode
from dino_jax.data.files import Files, below, is_image, open_files
from dino_jax.data.images import ImageFiles, first_folder
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
      path: training images (see `open_path`), or a folder or archive with `train` and `val` or `test`, as ImageNet is.
      test_path: test images; "" when `path` holds both.
      limit: at most this many images of each, spread evenly.
      decode: turns the bytes of a file into an array.

    Raises:
      ValueError: a path is missing, a class folder is empty, there are fewer than two classes, or one occurs only in
        the test images.
    """
    if test_path:
        train_place, test_place = path, test_path
        train, test = _open(path, decode), _open(test_path, decode)
    else:
        (train_place, train), (test_place, test) = _splits(path, decode)
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


def _splits(path: str, decode: Callable[..., Any]) -> list[tuple[str, Source]]:
    """Finds the training and test images in one folder or archive; returns where they are, and them."""
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"{place} does not exist: give a folder with train and val, or training images and --test")
    archive = open_files(place) if place.is_file() and place.suffix not in EXTENSIONS else None

    def there(name: str) -> bool:
        return (place / name).is_dir() if archive is None else below(archive, name) is not None

    test = next((name for name in TEST_FOLDERS if there(name)), None)
    if test is None or not there("train"):
        raise ValueError(f"{place} holds no folders train and val (or test): give the test images with --test")
    if archive is None:
        return [(str(place / name), _open(str(place / name), decode)) for name in ("train", test)]
    return [(f"{name} in {place}", _in_archive(archive, name, decode)) for name in ("train", test)]


def _in_archive(archive: Files, folder: str, decode: Callable[..., Any]) -> Source:
    prefix = f"{below(archive, folder)}{folder}/"
    names = [name for name in archive.names if name.startswith(prefix) and is_image(name)]
    return ImageFiles(archive, names, class_of=lambda name: first_folder(name.removeprefix(prefix)), decode=decode)


def _open(path: str, decode: Callable[..., Any]) -> Source:
    source = open_path(path, decode=decode)
    place = Path(path).expanduser()
    if place.is_dir() and isinstance(source, ImageFiles) and source.class_names:
        folders = sorted(f.name for f in place.iterdir() if f.is_dir() and not f.name.startswith("."))
        empty = [name for name in folders if name not in source.class_names]
        if empty:
            raise ValueError(f"class {empty[0]} in {place} has no image: add some or remove the folder")
    return source
