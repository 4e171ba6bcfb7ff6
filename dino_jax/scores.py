"""What is measured of a backbone while it trains: global quality, dense quality, and quality without labels."""

import contextlib
import functools
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dino_jax import sharding, views
from dino_jax.collect import of_images
from dino_jax.data.dense import IGNORE, MaskPairs, open_masks
from dino_jax.data.fit import centre_crop, resize
from dino_jax.data.reading import USABLE, read_batches, why
from dino_jax.data.sources import Source, has_labels
from dino_jax.data.subset import Joined, evenly, part_of
from dino_jax.data.windows import multiple, nearest
from dino_jax.evals.knn import knn, raw_pixels
from dino_jax.evals.quality import cls_patch_cosine, mean_pairwise_cosine, neighbour_cosine, rankme, uniformity
from dino_jax.evals.segmentation import quick_miou
from dino_jax.extraction import extract_features
from dino_jax.models import Extractor, VisionTransformer
from dino_jax.models.stages import STATS
from dino_jax.recipe import naming
from dino_jax.state import Networks, Params

BATCH = 64  # images at once; enough to fill a CPU's or an accelerator's matrix units
TRIED = 16  # held-out images
DENSE_BATCH = 16  # larger images
Numbers = dict[str, float]


class Interrupted(Exception):
    """An evaluation was given up, as the run was asked to stop."""


class Scores:
    """Evaluates backbones of one architecture by the protocols under `eval` of a recipe.

    Attributes:
      held_out: images with which accuracy is measured, if there are any.
      labelled: whether both training and held-out images have labels.
      seconds: spent on evaluation so far.
    """

    def __init__(
        self,
        config: ConfigDict,
        networks: Networks,
        mesh: Mesh,
        source: Source,
        held_out: Source | None,
        *,
        shown: Source | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ):
        """Takes the run's networks and mesh, the images that may vote and, if any, labelled held-out ones.

        Args:
          shown: images of whose features the label-free quality is measured (default: the held-out ones, if any).
          interrupted: asked now and then during an evaluation, which ends with `Interrupted` once it returns True.
        """
        self.config, self.mesh, self._network, self._interrupted = config, mesh, networks.backbone, interrupted
        if isinstance(self._network, VisionTransformer):  # other attention is checked at the sizes of crops only
            self._network = self._network.clone(attention="xla")
        labelled = source.labelled if isinstance(source, Joined) else source
        self.voters, self.held_out = part_of(labelled, config.eval.knn.images), held_out
        self.quality_images = part_of(shown or held_out or source, config.eval.quality.images)
        # Read now, so that what is wrong with them is said before the first step.
        path, count, patch = config.eval.dense.path, config.eval.dense.images, networks.backbone.patch_size
        with naming("eval.dense.path"):
            pairs = {split: open_masks(path, split) for split in ("train", "val")} if path else {}
            self._dense = {split: read_dense(pairs[split], count=count, patch=patch) for split in pairs}
        self._dense_classes = len(pairs["train"].class_names) if pairs else 0
        if held_out is not None:
            with naming("eval.knn.path" if config.eval.knn.path else "data.test_path"):
                check_readable(held_out)
        self.labelled = held_out is not None and has_labels(held_out) and has_labels(labelled)
        if self.labelled and config.eval.knn.k > len(self.voters):
            raise ValueError(
                f"eval.knn.k = {config.eval.knn.k} neighbours are more than the {len(self.voters)} images that vote: "
                "lower it, or raise eval.knn.images"
            )
        self.seconds = 0.0
        self._last_dense: tuple[jax.Array, float] | None = None
        self._baselines: Numbers | None = None
        where = sharding.replicated(mesh)
        self._patches = jax.jit(views.patches, out_shardings=where)

    def dense_checksum(self) -> int:
        """Returns a checksum of the images and masks of the dense score."""
        arrays = [array for split in self._dense.values() for array in split]
        return functools.reduce(lambda crc, array: zlib.crc32(np.ascontiguousarray(array), crc), arrays, 0)

    def due(self, step: int) -> bool:
        """Tells whether any protocol is due after `step` completed steps."""
        return bool(self._protocols(step))

    def at(self, step: int, params: Params) -> Numbers:
        """Runs the protocols that are due; flat `group/name` numbers."""
        numbers: Numbers = {}
        with self._clock():
            for protocol in self._protocols(step):
                self._go_on()
                numbers |= protocol(params)
        return numbers

    def _go_on(self, *_: int) -> None:
        if self._interrupted():
            raise Interrupted

    def of_snapshot(self, params: Params) -> float:
        """Returns the dense score of a Gram-teacher snapshot."""
        with self._clock():
            return self.dense_score(params)

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - start

    def _protocols(self, step: int) -> list[Callable[[Params], Numbers]]:
        known = {"knn": self.knn, "dense": self.dense, "quality": self.quality}
        periods = {name: self.config.eval[name].every for name in known}
        return [protocol for name, protocol in known.items() if periods[name] and step % periods[name] == 0]

    def knn(self, params: Params, name: str = "knn/teacher") -> Numbers:
        """Returns {name: weighted k-NN accuracy} of the CLS features; empty without labels."""
        if not self.labelled:
            return {}
        train, test = (self._features(params, source, "cls") for source in (self.voters, self.held_out))
        return {name: self._accuracy(train["cls"], train["labels"], test["cls"], test["labels"])}

    def baselines(self, first_backbone: Callable[[], Params]) -> Numbers:
        """Returns what training must surpass, measured once per process: {"knn/pixels", "knn/untrained"}, see `knn`.

        Empty without labels.
        """
        if self._baselines is None:
            with self._clock():
                untrained = self.knn(first_backbone(), "knn/untrained") if self.labelled else {}
                self._baselines = self.knn_of_pixels() | untrained
        return self._baselines

    def knn_of_pixels(self) -> Numbers:
        """Returns {"knn/pixels": accuracy} of the images shrunk to 16 x 16, less their mean."""
        if not self.labelled:
            return {}
        (train, labels), (test, truth) = (self._pixels(source) for source in (self.voters, self.held_out))
        mean = train.mean(0)
        return {"knn/pixels": self._accuracy(train - mean, labels, test - mean, truth)}

    def dense(self, params: Params) -> Numbers:
        """Returns {"dense/miou": mIoU of a linear probe on patches, fitted in closed form}; empty without masks."""
        return {"dense/miou": self.dense_score(params)} if self.config.eval.dense.path else {}

    def dense_score(self, params: Params) -> float:
        """Returns the mIoU (0 to 1) of a linear probe on the patches of a backbone, on eval.dense.path."""
        leaf = jax.tree.leaves(params)[0]
        if self._last_dense is None or self._last_dense[0] is not leaf:  # a snapshot may just have been scored
            (train, train_masks), (test, test_masks) = (self._dense[split] for split in ("train", "val"))
            train, test = (self.patches(params, images) for images in (train, test))
            score = quick_miou(train, train_masks, test, test_masks, classes=self._dense_classes)
            self._last_dense = leaf, score
        return self._last_dense[1]

    def quality(self, params: Params) -> Numbers:
        """Returns `quality/...`, which need no labels: effective rank, uniformity, and cosines of patches.

        Undefined for a single image.
        """
        found = self._features(params, self.quality_images, "cls", "patches")
        if len(found["ids"]) < 2:
            return {}
        cls, grid = jnp.asarray(found["cls"]), jnp.asarray(found["patches"])
        patches = grid.reshape(len(grid), -1, grid.shape[-1])
        return {
            "quality/rankme": float(rankme(cls)),
            "quality/uniformity": uniformity(found["cls"]),
            "quality/cls_patch_cosine": float(cls_patch_cosine(cls, patches)),
            "quality/patch_cosine": float(mean_pairwise_cosine(patches)),
            "quality/neighbour_cosine": float(neighbour_cosine(grid)),
        }

    def _accuracy(self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
        """Returns the accuracy over the images that have a class; those beside the class folders have none."""
        votes, asked = labels >= 0, truth >= 0
        k = min(self.config.eval.knn.k, int(votes.sum()))
        return knn(train[votes], labels[votes], test[asked], truth[asked], ks=(k,))[k]

    def _features(self, params: Params, source: Source | None, *outputs: str) -> dict[str, np.ndarray]:
        assert source is not None
        size, model = self.config.eval.size, self.extractor(params)
        return extract_features(
            model, source, size=size, outputs=outputs, batch_size=BATCH, mesh=self.mesh, advance=self._go_on
        )

    def extractor(self, params: Params) -> Extractor:
        """Returns the network with a backbone's weights, in the form of `state.teacher_weights`."""
        # The name is static under jit: a constant avoids compiling again.
        data = self.config.data
        params = dict(params)
        stats = params.pop(STATS, {})
        return Extractor("backbone", self._network, params, tuple(data.mean), tuple(data.std), stats)

    def _pixels(self, source: Source | None) -> tuple[np.ndarray, np.ndarray]:
        """Returns small images as features, and labels; of several processes, each decodes its part."""
        assert source is not None
        count, first = jax.process_count(), jax.process_index()
        rows = range(first, len(source) + -len(source) % count, count)
        mine = [index if index < len(source) else -1 for index in rows]
        prepare = functools.partial(centre_crop, size=self.config.eval.size)
        found = []
        for batch in read_batches(source, mine, batch_size=BATCH, prepare=prepare):
            self._go_on()
            found.append((raw_pixels(batch["images"]), batch["labels"], batch["valid"]))
        parts = tuple(np.concatenate(part) for part in zip(*found, strict=True))
        if count > 1:
            everywhere = multihost_utils.process_allgather(parts)
            parts = tuple(np.swapaxes(part, 0, 1).reshape(-1, *part.shape[2:]) for part in everywhere)
        features, labels, valid = parts
        return features[valid], labels[valid]

    def patches(self, params: Params, images: np.ndarray) -> np.ndarray:
        """Returns patches float32 `(images, rows, columns, dim)` of uint8 images `(images, height, width, 3)`."""
        apply = functools.partial(self._patches, self.extractor(params))
        return of_images(apply, images, batch_size=DENSE_BATCH, mesh=self.mesh)


def check_readable(source: Source) -> None:
    """Raises ValueError when none of a few images of a source, spread evenly, can be used."""
    some = evenly(len(source), TRIED)
    reasons = (why(source, index) for index in some)
    if all(reason != USABLE for reason in reasons):
        first = some[0]
        raise ValueError(
            f"none of {len(some)} images that were tried can be used, such as {source.name(first)} "
            f"({why(source, first)})"
        )


def read_dense(pairs: MaskPairs, *, count: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads images and masks, spread evenly over a data set, all at the size of the first.

    Args:
      count: how many at most.
      patch: the sides of the images are rounded to multiples of it.

    Returns:
      uint8 images `(images, height, width, 3)` and masks `(images, mask_height, mask_width)`.
    """
    samples = [pairs[index] for index in evenly(len(pairs), count)]
    rows, columns = samples[0][1].shape
    height, width = (multiple(side, patch) for side in (rows, columns))
    if all((mask == IGNORE).all() for _, mask in samples):
        raise ValueError(f"every pixel of the {len(samples)} masks is ignored, such as those of {pairs.name(0)}")
    images = [resize(image, (height, width)) for image, _ in samples]
    masks = [nearest(mask, (rows, columns)) for _, mask in samples]
    return np.stack(images), np.stack(masks)
