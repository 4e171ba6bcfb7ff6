"""Images with a depth for every pixel, in the layouts of their data sets."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.io

from dino_jax.data.decode import IMAGE_EXTENSIONS
from dino_jax.data.dense import read_image, read_png
from dino_jax.data.files import Files, below, in_folder, open_files, paired

# Images and their depth maps may differ in size, but not in shape.
MAX_ASPECT_CHANGE = 0.03
NYU_FILE = "nyu_depth_v2_labeled.mat"
NYU_SPLITS = "splits.mat"


class Depths(Protocol):
    """Images with a depth map.

    Attributes:
      relative: depth is a share of an unknown largest depth, else metres.
      nyu: whole frames of NYUv2, of which a part is valid (`evals.depth.eigen_crop`).
    """

    @property
    def relative(self) -> bool: ...

    @property
    def nyu(self) -> bool: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Returns what the image is called."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image uint8 `(height, width, 3)` and its depth float32 `(rows, columns)`, 0 where unknown.

        Raises:
          ValueError: when a file is damaged, or image and depth differ in shape.
        """


def open_depths(path: str | os.PathLike, split: str) -> Depths:
    """Opens a data set of depth, told by its files:

    - pairs: `{train,test}/images/<id>.jpg` with `.../depth/<id>.png`, 16-bit millimetres or 8-bit relative depth;
    - NYUv2, labelled: `nyu_depth_v2_labeled.mat` and `splits.mat`, or the folder of both; needs h5py;
    - NYUv2, synchronised: `<scene>/rgb_<n>.jpg` with `<scene>/sync_depth_<n>.png` in 16-bit millimetres, below `sync`
      or else `train` for training and below `test` for testing.

    Raises:
      ValueError: when the layout or split is unknown, or an image has no depth.
    """
    place = Path(path).expanduser()
    labelled = place / NYU_FILE if place.is_dir() else place
    if labelled.suffix == ".mat" and labelled.exists():
        return _nyu_labelled(labelled, split)
    files = open_files(place)
    if below(files, f"{split}/images") is not None and below(files, f"{split}/depth") is not None:
        return _pairs(files, split)
    if any("/sync_depth_" in f"/{name}" for name in files.names):
        return _nyu_synchronised(files, split)
    raise ValueError(
        f"{files.path} is not laid out as depth data: it needs {split}/images and {split}/depth, {NYU_FILE}, "
        "or NYUv2's folders of rgb_<n>.jpg and sync_depth_<n>.png"
    )


@dataclasses.dataclass(frozen=True)
class DepthPairs:
    """Files of images and of depth maps, see `Depths`.

    Attributes:
      pairs: names of the image's and the depth map's file.
    """

    files: Files
    pairs: list[tuple[str, str]]
    relative: bool = False
    nyu: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return self.pairs[index][0]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_name, depth_name = self.pairs[index]
        image, values = read_image(self.files, image_name), read_png(self.files, depth_name)
        if _is_relative(values) != self.relative:
            raise ValueError(
                f"{self.pairs[0][1]} and {depth_name} in {self.files.path}: one has 8 bits and the other 16, but "
                "relative depth and millimetres cannot be mixed"
            )
        stretch = (values.shape[1] / values.shape[0]) / (image.shape[1] / image.shape[0])
        if abs(stretch - 1) > MAX_ASPECT_CHANGE:
            raise ValueError(
                f"{depth_name} in {self.files.path} is {values.shape[1]} x {values.shape[0]} pixels, its image "
                f"{image.shape[1]} x {image.shape[0]}: both must show the same field of view"
            )
        return image, values.astype(np.float32) / (255 if self.relative else 1000)


def _pairs(files: Files, split: str) -> DepthPairs:
    root = below(files, f"{split}/images")
    images = in_folder(files, f"{root}{split}/images", IMAGE_EXTENSIONS)
    pairs = paired("depth map", images, in_folder(files, f"{root}{split}/depth", (".png",)))
    if not pairs:
        raise ValueError(f"{files.path} has no images in its split {split!r}")
    return DepthPairs(files, pairs, relative=_is_relative(read_png(files, pairs[0][1])))


def _is_relative(samples: np.ndarray) -> bool:
    """Tells whether a depth map has 8 bits."""
    return samples.dtype.itemsize == 1


def _nyu_synchronised(files: Files, split: str) -> DepthPairs:
    # Beside the 24,000 frames of `sync`, a `train` folder holds the 795 of the labelled file.
    wanted = ("sync", split) if split == "train" else (split,)
    folders = [name for name in wanted if below(files, name) is not None]
    if not folders:
        raise ValueError(f"{files.path} has depth maps, but no folder {split!r} with them")
    root = f"{below(files, folders[0])}{folders[0]}"
    photographs = _numbered(in_folder(files, root, IMAGE_EXTENSIONS), "rgb_")
    pairs = paired("depth map", photographs, _numbered(in_folder(files, root, (".png",)), "sync_depth_"))
    if not pairs:
        raise ValueError(f"{files.path}: {root} has no rgb_<n>.jpg with a sync_depth_<n>.png beside it")
    return DepthPairs(files, pairs, nyu=True)


def _numbered(names: dict[str, str], prefix: str) -> dict[str, str]:
    """Returns the files whose own name starts with `prefix`, by scene and number."""
    return {key.replace(f"/{prefix}", "/"): name for key, name in names.items() if f"/{prefix}" in key}


@dataclasses.dataclass(frozen=True)
class LabelledNyu:
    """Frames of NYUv2's labelled file, see `Depths`.

    Attributes:
      path: of the file.
      images: uint8 `(frames, 3, width, height)`, in the file.
      depths: float32 metres `(frames, width, height)`, in the file, 0 where nothing was measured.
      indices: of the frames of a split.
    """

    path: Path
    images: Any
    depths: Any
    indices: np.ndarray
    relative: bool = False
    nyu: bool = True

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return f"frame {self.indices[index] + 1}"

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        place = self.indices[index]
        try:
            image, depth = self.images[place], self.depths[place]
        except OSError as error:
            words = " ".join(str(error).split())
            raise ValueError(f"{self.name(index)} of {self.path} cannot be read ({words}): fetch it again") from None
        return np.ascontiguousarray(image.T), np.ascontiguousarray(depth.T.astype(np.float32))


def _nyu_labelled(path: Path, split: str) -> LabelledNyu:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path} needs h5py: pip install -e '.[nyu]'") from None
    listed = path.with_name(NYU_SPLITS)
    keys = {"train": "trainNdxs", "test": "testNdxs"}
    if split not in keys:
        raise ValueError(f"{path} has the splits {' and '.join(keys)}, not {split!r}")
    if not listed.exists():
        raise ValueError(f"{listed}, the official split of {path.name}, is missing: fetch it")
    try:
        indices = scipy.io.loadmat(listed)[keys[split]].astype(int).ravel() - 1
    except Exception as error:  # a damaged file makes SciPy's reader raise nearly every built-in exception
        raise ValueError(f"{listed}, the official split of {path.name}, cannot be read ({error}): fetch it") from None
    try:
        file = h5py.File(path, "r")
        # The other depth map, `depths`, has its gaps painted over.
        images, depths = file["images"], file["rawDepths"]
    except (OSError, KeyError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{path} is not NYUv2's labelled file, or is damaged ({words}): fetch it again") from None
    if len(images) != len(depths) or indices.min() < 0 or indices.max() >= len(images):
        raise ValueError(
            f"{path} has {len(images)} images and {len(depths)} depth maps, {listed} names frames "
            f"{indices.min() + 1} to {indices.max() + 1}: fetch both again"
        )
    return LabelledNyu(path, images, depths, indices)
