"""Linear probe of frozen features: DINOv2, arXiv 2304.07193, appendix B.3, and DINO, section 4.1."""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from dino_jax import host_memory, sharding
from dino_jax.data.fingerprint import fingerprint
from dino_jax.data.probe_views import Augmented
from dino_jax.data.reading import read_batches
from dino_jax.data.subset import Chosen
from dino_jax.evals import linear
from dino_jax.extraction import Features
from dino_jax.models import Extractor, VisionTransformer
from dino_jax.pictures.charts import over_setting
from dino_jax.tasks import Result
from dino_jax.tasks.classes import add_data_arguments, draw_confusions, features_of, open_data
from dino_jax.tasks.kept import Kept

OUTPUTS = ("cls", "mean_patch")
BLOCK = 4096  # images whose joined features and logits exist at once
Step = tuple[dict[str, Array], np.ndarray, np.ndarray]
"""Features of each choice, labels and weights of one batch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    add_data_arguments(parser)
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images")
    parser.add_argument("--train-batch", type=int, default=256, help="images per SGD step")
    text = "learning rates to try, for a batch of 256"
    parser.add_argument("--rates", type=float, nargs="+", default=list(linear.RATES), help=text)
    parser.add_argument(
        "--views",
        type=int,
        default=0,
        metavar="N",
        help="extract N augmented views of each image once and train on those; 0 draws new ones in every epoch",
    )
    parser.add_argument(
        "--validation", type=float, default=0.1, help="fraction of the training images held out for choosing the probe"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed for probes, order, views and split")


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Trains probes of all learning rates and feature choices, and tests the one that is best on held-out images.

    Raises:
      ValueError: wrong data or settings.
    """
    if (
        min(options.epochs, options.train_batch) < 1
        or options.views < 0
        or any(not 0 < r < math.inf for r in options.rates)
    ):
        raise ValueError("--epochs, --train-batch and --rates must be above 0, and --views 0 or more")
    if options.views > options.epochs:
        raise ValueError(f"--views {options.views} are more than --epochs {options.epochs}, each of which takes one")
    linear.check_share(options.validation, "--validation")
    data = open_data(options, model)
    backbone = model.backbone
    blocks = min(linear.BLOCKS, backbone.depth) if isinstance(backbone, VisionTransformer) else 1
    # Whatever their classes: to know them all here, every image would have to be decoded.
    kept, held = linear.hold_out(np.zeros(len(data.train)), share=options.validation, seed=options.seed)
    check_views(options, images=len(kept), width=model.width, blocks=blocks)
    train, validation = (Chosen(data.train, part, class_names=data.class_names) for part in (kept, held))
    valid, test = (
        features_of(model, source, options, outputs=OUTPUTS, layers=blocks) for source in (validation, data.test)
    )
    params, seen = train_probes(model, train, options, blocks=blocks, classes=len(data.class_names))
    unseen = [name for name, steps in zip(data.class_names, seen, strict=True) if not steps]
    if unseen and options.limit is None:
        text = f"no training image of class {unseen[0]} was used ({len(unseen)} such classes)"
        print(f"{text}: they cannot be read, or are too few for --train-batch and --epochs", file=sys.stderr)
    chosen_by = linear.accuracies(linear.predict(params, _blocks(valid)), valid["labels"])
    name, index = linear.best(chosen_by)
    found = linear.predict(params, _blocks(test))
    scores = linear.accuracies(found, test["labels"])
    predictions = found[name][index]
    known = predictions >= 0
    if not known.any():
        raise ValueError(f"every probe diverged at --rates {options.rates}: lower them")
    accuracy = float(scores[name][index])
    rate = options.rates[index]
    title = f"Linear probe on {name}, rate {rate:g}: {accuracy:.1%} of the test images"
    if rate == max(options.rates):
        print(f"the best rate, {rate:g}, is the largest tried: try larger ones with --rates", file=sys.stderr)
    ids, labels = test["ids"][known], test["labels"][known]
    pictures = draw_confusions(data, ids, labels, predictions[known], folder, title=title)
    path = folder / "rates.png"
    setting = "learning rate of a batch of 256 (accuracy on held-out training images)"
    pictures.append(over_setting(options.rates, chosen_by, path, title=title, setting=setting, chosen=(name, index)))
    numbers, rows = _report(options.rates, chosen_by, scores, (name, index))
    return Result(numbers, rows, pictures)


def check_views(options: argparse.Namespace, *, images: int, width: int, blocks: int) -> None:
    """Raises ValueError when the features of all `--views` cannot be held in memory at once."""
    vectors = blocks + 1  # of float32: the CLS tokens, and the last block's mean patch
    what = f"the features of {options.views} views of {images} images"
    needed = 4 * options.views * images * width * vectors
    host_memory.check(needed, what, "use fewer --views, or 0 to draw them as needed")


def train_probes(
    model: Extractor, train: Chosen, options: argparse.Namespace, *, blocks: int, classes: int
) -> tuple[linear.Probe, np.ndarray]:
    """Trains all probes; returns their parameters and how many images of each class were used, over all epochs."""
    batch_size = min(options.train_batch, len(train))
    steps = options.epochs * (len(train) // batch_size)
    make = _from_cache if options.views else _on_the_fly
    tokens = (jax.ShapeDtypeStruct((1, *shape, model.width), np.float32) for shape in ((blocks,), ()))
    dims = {name: x.shape[1] for name, x in jax.eval_shape(linear.choices, *tokens).items()}
    probes = linear.init(jax.random.key(options.seed), dims, rates=len(options.rates), classes=classes)
    kept = Kept(model, lambda: [fingerprint(train), train.class_names], options)
    probes, seen = kept.restored((probes, np.zeros(classes, int)))
    with tqdm(total=steps, initial=kept.step, unit=" steps", desc="linear probes") as bar:
        batches = make(model, train, options, blocks=blocks, batch_size=batch_size, done=kept.step)
        for step, (features, labels, weights) in enumerate(batches, start=kept.step):
            rates = linear.scheduled(tuple(options.rates), step=step, steps=steps, batch_size=batch_size)
            seen += np.bincount(labels[weights > 0], minlength=classes)
            probes, losses = linear.train_step(probes, features, labels, weights, rates)
            bar.update()
            if step % 50 == 0 or step + 1 == steps:
                lowest = min(float(jnp.nanmin(loss)) for loss in losses.values())
                bar.set_postfix_str(f"lowest loss {lowest:.3f}", refresh=False)
            kept.keep(step + 1, (probes, seen), last=step + 1 == steps)
    return probes.params, seen


def _on_the_fly(
    model: Extractor, train: Chosen, options: argparse.Namespace, *, blocks: int, batch_size: int, done: int = 0
) -> Iterator[Step]:
    """Yields features of new views in every epoch, computed as they are needed, after `done` steps."""
    mesh = sharding.make_mesh()
    shards = sharding.data_shards(mesh)
    at_once = -(-min(options.batch_size, batch_size) // shards) * shards  # images in the network
    rows = -(-batch_size // at_once) * at_once

    @jax.jit
    def features(model: Extractor, images: Array) -> dict[str, Array]:
        tokens = model.intermediate(model.normalize(images), blocks)
        cls, patches = ([x[name].astype(jnp.float32) for x in tokens] for name in ("cls", "patches"))
        return linear.choices(jnp.stack(cls, axis=1), patches[-1].mean((1, 2)))

    model = jax.device_put(model, sharding.replicated(mesh))
    each = len(train) // batch_size  # steps of an epoch
    for epoch in range(done // each, options.epochs):
        views = Augmented(train, options.size, options.seed, epoch)
        orders = _orders(len(train), batch_size, options.seed, epoch)[max(0, done - epoch * each) :]
        padded = np.pad(orders, ((0, 0), (0, rows - batch_size)), constant_values=-1).ravel().tolist()
        for batch in read_batches(views, padded, batch_size=rows, prepare=lambda image: image):
            stray = batch["ids"][batch["valid"] & (batch["labels"] < 0)]
            if len(stray):
                raise ValueError(f"{train.name(int(stray[0]))} has no class: put each image into a folder of its class")
            parts = [
                features(model, sharding.place({"images": images}, mesh)["images"])
                for images in np.split(batch["images"], rows // at_once)
            ]
            joined = {name: jnp.concatenate([part[name] for part in parts]) for name in parts[0]}
            yield joined, np.maximum(batch["labels"], 0), batch["valid"].astype(np.float32)


def _from_cache(
    model: Extractor, train: Chosen, options: argparse.Namespace, *, blocks: int, batch_size: int, done: int = 0
) -> Iterator[Step]:
    """Yields features of `--views` views of every image, extracted once and taken in turn, after `done` steps."""
    # Views have their size already: "crop" leaves them as they are.
    views = [Augmented(train, options.size, options.seed, view) for view in range(options.views)]
    found = [
        _without_unused(features_of(model, view, options, outputs=OUTPUTS, layers=blocks, how="crop")) for view in views
    ]
    for epoch in range(options.epochs):
        features = found[epoch % len(found)]
        orders = _orders(len(features["labels"]), min(batch_size, len(features["labels"])), options.seed, epoch)
        left_out, done = min(done, len(orders)), max(0, done - len(orders))
        for order in orders[left_out:]:
            weights = np.ones(len(order), np.float32)
            chosen = {name: features[name][order] for name in (*OUTPUTS, "labels")}
            yield _choices(chosen), chosen["labels"], weights


def _orders(images: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the images of an epoch `(batches, batch)`; those that fill no batch are left out."""
    order = np.random.default_rng((seed, epoch, 1)).permutation(images)
    return order[: images // batch_size * batch_size].reshape(-1, batch_size)


def _blocks(features: Features) -> Iterator[dict[str, Array]]:
    """Joins extracted tokens of some images at a time, as those of all may not fit the device."""
    for start in range(0, len(features["labels"]), BLOCK):
        yield _choices({name: features[name][start : start + BLOCK] for name in OUTPUTS})


def _without_unused(features: Features) -> Features:
    """Drops the mean patches of all blocks but the last, which alone are used."""
    patch = features["mean_patch"]
    return features | {"mean_patch": patch if patch.ndim == 2 else patch[:, -1].copy()}


def _choices(features: Features) -> dict[str, Array]:
    """Joins extracted tokens."""
    features = _without_unused(features)
    return linear.choices(features["cls"], features["mean_patch"])


def _report(
    rates: list[float], validation: dict[str, np.ndarray], test: dict[str, np.ndarray], best: tuple[str, int]
) -> tuple[dict[str, float], list[list[str | float]]]:
    """Returns the numbers and the table."""
    name, index = best
    numbers = {
        "linear/accuracy": float(test[name][index]),
        "linear/validation": float(validation[name][index]),
        "linear/rate": float(rates[index]),
    }
    rows: list[list[str | float]] = [["CLS of the last N blocks (cls_N)", "best rate", "validation", "test"]]
    for choice, scores in validation.items():
        place = int(np.argmax(scores))
        numbers[f"linear/{choice}"] = float(test[choice][place])
        mark = " (chosen)" if choice == name else ""
        rows.append([choice + mark, f"{rates[place]:g}", float(scores[place]), float(test[choice][place])])
    return numbers, rows
