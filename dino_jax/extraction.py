"""Extracts features of many images: streamed from disk, split over all devices, cached and resumable.

features = extract_features(model, source, size=224, outputs=("cls", "mean_patch"), cache=Path("cache"))
features["cls"]  # (images, dim), row i is the image features["ids"][i]
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from dino_jax import feature_outputs, host_memory, sharding
from dino_jax.checksum import checksums
from dino_jax.collect import Features, collect
from dino_jax.data.fingerprint import Fingerprint, fingerprint
from dino_jax.data.fit import FITS, fit
from dino_jax.data.reading import USABLE, Batch, Prepare, read_batches, read_by_shape, why
from dino_jax.data.shards import Shards
from dino_jax.data.sources import Source
from dino_jax.data.windows import multiple
from dino_jax.feature_outputs import OUTPUTS
from dino_jax.models import Extractor, VisionTransformer

# A kill loses one shard at most. It holds at most this many images, fewer if they would take more than these bytes.
MOST_IMAGES = 4096
MOST_BYTES = 256 * 2**20
LEAST_IMAGES = 16


def extract_features(
    model: Extractor,
    source: Source,
    *,
    size: int = 224,
    outputs: Sequence[str] = ("cls",),
    layers: int = 1,
    batch_size: int = 64,
    mesh: Mesh | None = None,
    cache: Path | None = None,
    progress: bool = False,
    how: str = "crop",
    advance: Callable[[int], Any] = lambda images: None,
) -> Features:
    """Computes the features of all images of a source.

    >>> import dino_jax
    >>> from dino_jax.data.sources import open_path
    >>> from dino_jax.data.subset import part_of
    >>> model, params = dino_jax.load("random:dinov3_vits16")
    >>> found = extract_features(model, part_of(open_path("packaged"), 4), size=64, outputs=("cls", "patches"))
    >>> found["cls"].shape, found["patches"].shape, found["ids"]
    ((4, 384), (4, 4, 4, 384), array([0, 1, 2, 3], dtype=int32))

    Images that cannot be used are left out and counted on stderr. With several processes each decodes its part of every
    batch, and all return everything.

    Args:
      model: the network with its parameters.
      size: side of the images in pixels, a multiple of the patch.
      outputs: among "cls" `(images, dim)`, "mean_patch" and "gem_patch" `(images, dim)`, the patches' mean and their
        generalised mean (GeM, arXiv 1711.02512, equation 3), "patches" `(images, height, width, dim)` and "registers"
        `(images, registers, dim)`.
      layers: how many of the last blocks; more than one puts an axis of blocks after the one of images.
      batch_size: images at once over all devices; rounded up to a multiple of their number.
      mesh: where to compute (default: all devices).
      cache: a folder in which finished shards are kept, so that a call that was killed continues, and one that was
        done returns at once. All processes must see it. What it holds belongs to these weights, these images and these
        settings; an image whose content changes under its old name is noticed only if it is one of a few samples.
      progress: show a bar on stderr.
      how: "centre", "crop", "squash" or "native", see `fit.fit`; "native" has no "patches" and needs a single process.
      advance: is told how many more images are done; what it raises ends the extraction.

    Returns:
      float32 arrays by output; "labels" int32 `(images,)`, -1 unknown; "ids" int32 `(images,)`, index in the source.

    Raises:
      ValueError: wrong settings, or a source without usable images.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    work = Extraction(
        model, source, size=size, outputs=outputs, layers=layers, batch_size=batch_size, mesh=mesh, how=how
    )
    fix = "use fewer images, or write parts with python -m dino_jax.features"
    host_memory.check(2 * work.bytes(), f"the features of {len(source)} images", fix)  # 2: they are joined at the end
    shards = None if cache is None else Shards(Path(cache) / work.key, names=[*outputs, "labels", "ids"])
    if shards is not None and jax.process_index() == 0:
        shards.describe(work.settings())
    parts = []
    with tqdm(total=len(source), unit=" images", disable=not progress or jax.process_index() != 0) as bar:
        for number in range(work.count):
            found = None if shards is None else _stored(shards, work, number)
            if found is None:
                found = work.compute(number, lambda images: (bar.update(images), advance(images)))
                if shards is not None and jax.process_index() == 0:
                    shards.write(number, found)
            else:
                bar.update(len(work.images_of(number)))
            parts.append(found)
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    report_bad(source, features["ids"], work.prepare)
    return features


class Extraction:
    """One pass of a model over a source, cut into shards that do not depend on batches, devices or processes.

    Attributes:
      count: how many shards there are.
      images_per_shard: images of the source in each but the last.
      prepare: brings an image to size.
      shapes: of each output, without the axis of images.
      key: names weights, images and settings in a few letters.
    """

    def __init__(
        self,
        model: Extractor,
        source: Source,
        *,
        size: int = 224,
        outputs: Sequence[str] = ("cls",),
        layers: int = 1,
        batch_size: int = 64,
        mesh: Mesh,
        how: str = "crop",
        images_per_shard: int | None = None,
    ):
        """Checks the settings and brings the parameters to the devices.

        Args:
          images_per_shard: default as many as fit the limits above; the others are those of `extract_features`.
        """
        _check(model, source, size=size, outputs=outputs, layers=layers, batch_size=batch_size, how=how, mesh=mesh)
        self.source, self.mesh = source, mesh
        self._size, self._how, self._layers, self._outputs = size, how, layers, tuple(outputs)
        self.prepare = functools.partial(fit, size=size, how=how, multiple=model.patch_size)
        self.shapes = feature_outputs.shapes(
            model, model.patch_size if how == "native" else size, self._outputs, layers
        )
        if images_per_shard is not None and images_per_shard < 1:
            raise ValueError(f"a part must hold at least 1 image, got {images_per_shard}")
        self.images_per_shard = images_per_shard or _images_per_shard(self.shapes)
        self.count = -(-len(source) // self.images_per_shard)
        parts = sharding.data_shards(mesh)
        batch_size = min(batch_size, self.images_per_shard, len(source))
        self._batch_size = batch_size + -batch_size % parts
        self._model = _placed(model, mesh)

    @functools.cached_property
    def key(self) -> str:
        """Names the weights, the images and the settings."""
        return f"{self._model.name}-{digest(self.settings())[:16]}"

    @functools.cached_property
    def _network(self) -> dict[str, Any]:
        return identity(self._model)

    @functools.cached_property
    def _images(self) -> Fingerprint:
        return fingerprint(self.source)

    def settings(self) -> dict[str, Any]:
        """Returns all that the features depend on, as JSON."""
        return self._network | {
            "images": self._images,
            "classes": list(self.source.class_names),
            "number_of_images": len(self.source),
            "images_per_shard": self.images_per_shard,
            "size": self._size,
            "fit": self._how,
            "layers": self._layers,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }

    def bytes(self) -> int:
        """Returns the size of all features."""
        return len(self.source) * _bytes_each(self.shapes)

    def images_of(self, number: int) -> range:
        """Returns the images of a shard."""
        return range(number * self.images_per_shard, min((number + 1) * self.images_per_shard, len(self.source)))

    def has_mended(self, number: int, ids: np.ndarray) -> bool:
        """Tells whether an image of a shard that could not be used when it was written, so not in `ids`, now can."""
        missing = set(self.images_of(number)) - set(ids.tolist())
        return any(why(self.source, index, self.prepare) == USABLE for index in missing)

    def compute(self, number: int, advance: Callable[[int], Any] = lambda images: None) -> Features:
        """Computes one shard.

        Args:
          advance: is told how many more images are done.

        Returns:
          As `extract_features`, for the usable images of the shard; there may be none.
        """
        where = sharding.replicated(self.mesh) if self.mesh.is_multi_process else sharding.batch(self.mesh)
        program = feature_outputs.program(self._outputs, self._layers, where)

        def apply(images: Array) -> dict[str, Array]:
            return program(self._model, images)

        indices = self.images_of(number)
        if self._how == "native":
            batches = read_by_shape(
                self.source,
                indices,
                batch_size=self._batch_size,
                prepare=self.prepare,
                shards=sharding.data_shards(self.mesh),
            )
        else:
            batches = self._my_rows(indices)
        features = collect(apply, batches, mesh=self.mesh, advance=advance)
        if not features:
            none = {name: np.zeros((0, *shape), np.float32) for name, shape in self.shapes.items()}
            features = none | {name: np.zeros(0, np.int32) for name in ("labels", "ids")}
        order = np.argsort(features["ids"], kind="stable")
        return {name: array[order] for name, array in features.items()}

    def _my_rows(self, indices: range) -> Iterator[Batch]:
        """Reads this process's rows of every batch, which is filled up with empty ones."""
        size = self._batch_size
        padded = np.full(-(-len(indices) // size) * size, -1)
        padded[: len(indices)] = indices
        processes = sorted({device.process_index for device in self.mesh.devices.flat})
        mine = padded.reshape(-1, len(processes), size // len(processes))[:, processes.index(jax.process_index())]
        batch_size = size // len(processes)
        return read_batches(self.source, mine.ravel().tolist(), batch_size=batch_size, prepare=self.prepare)


def bad_images(source: Source, ids: np.ndarray, among: Iterable[int], prepare: Prepare) -> Iterator[dict[str, Any]]:
    """Yields "id", "name" and "reason" of the images that are among the given ones but not among `ids`.

    Args:
      prepare: brought them to size.
    """
    for index in sorted(set(among) - {int(index) for index in ids}):
        yield {"id": index, "name": source.name(index), "reason": why(source, index, prepare)}


def report_bad(source: Source, ids: np.ndarray, prepare: Prepare) -> None:
    """Says in a line on stderr how many images were left out.

    Raises:
      ValueError: if all were.
    """
    missing = len(source) - len(ids)
    if not missing:
        return
    example = next(bad_images(source, ids, range(len(source)), prepare))
    text = f"{missing} of {len(source)} images cannot be used, such as {example['name']} ({example['reason']})"
    if missing == len(source):
        raise ValueError(text)
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def _images_per_shard(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns a power of two within the limits above."""
    return max(2 ** int(np.log2(max(min(MOST_IMAGES, MOST_BYTES / _bytes_each(shapes)), 1))), LEAST_IMAGES)


def _bytes_each(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns the float32 bytes of one image's features."""
    return 4 * sum(int(np.prod(shape)) for shape in shapes.values())


def _check(
    model: Extractor,
    source: Source,
    *,
    size: int,
    outputs: Sequence[str],
    layers: int,
    batch_size: int,
    how: str,
    mesh: Mesh,
) -> None:
    """Refuses settings that cannot work, in one line."""
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or len(set(outputs)) != len(outputs):
        raise ValueError(f"outputs must be some of {', '.join(OUTPUTS)}, each once, got {', '.join(outputs) or 'none'}")
    if "registers" in outputs and not getattr(model.backbone, "registers", 0):
        raise ValueError(f"{model.name} has no registers: leave registers out of the outputs")
    if how not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {how!r}")
    if layers < 1 or batch_size < 1:
        raise ValueError(f"layers and batch size must be at least 1, got {layers} and {batch_size}")
    patch = model.patch_size
    if layers > 1 and not isinstance(model.backbone, VisionTransformer):
        raise ValueError(f"the stages of {model.name} differ in width and cannot be stacked: use one layer")
    if layers > model.depth:
        raise ValueError(f"{model.name} has {model.depth} blocks, asked for the last {layers}: use fewer layers")
    if how != "native" and (size < patch or size % patch):
        raise ValueError(
            f"size {size} is not a multiple of the patch of {model.name}, {patch} px: use {multiple(size, patch)}"
        )
    if how == "native" and "patches" in outputs:
        raise ValueError("patches of images of different sizes cannot be stacked: use fit crop or squash, or omit them")
    if how == "native" and mesh.is_multi_process:
        raise ValueError("fit native needs a mesh inside one process: use crop or squash, or local devices")
    if not len(source):
        raise ValueError("the source holds no images")


def _placed(model: Extractor, mesh: Mesh) -> Extractor:
    """Brings the parameters to the mesh, unless they are spread over its devices already."""
    devices = set(mesh.devices.flat)
    leaves = jax.tree.leaves(model)
    if all(isinstance(leaf, Array) and leaf.sharding.device_set == devices for leaf in leaves):
        return model
    split = sharding.state_shards(mesh) > 1
    where = sharding.of_state(model, mesh) if split else jax.tree.map(lambda leaf: sharding.replicated(mesh), model)
    return jax.device_put(model, where)


def _stored(shards: Shards, work: Extraction, number: int) -> Features | None:
    """Returns a shard that is stored, if every process finds it whole and up to date: all must take the same way."""
    found = shards.find(number)
    good = found is not None and not work.has_mended(number, found["ids"])
    if jax.process_count() > 1:
        good = bool(np.all(multihost_utils.process_allgather(np.asarray(good))))
    return found if good else None


def identity(model: Extractor) -> dict[str, Any]:
    """Returns what tells a network and its weights from others, as JSON."""
    found = jax.device_get([checksums(tree) for tree in (model.params, model.batch_stats)])
    leaves = [leaf for tree in found for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    weights = digest([(sharding.path_name(path), int(value)) for path, value in leaves])
    described = {"model": model.name, "backbone": repr(model.backbone), "mean": model.mean, "std": model.std}
    return described | {"weights": weights}


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value's JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
