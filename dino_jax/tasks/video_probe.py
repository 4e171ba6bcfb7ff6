"""Video classification by an attentive probe on frozen patch features: DINOv3, arXiv 2508.10104, section 6.3."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dino_jax import host_memory, sharding
from dino_jax.data.clips import Clips, open_clips
from dino_jax.data.subset import evenly
from dino_jax.evals import attentive
from dino_jax.evals.linear import check_share, hold_out
from dino_jax.extraction import Extraction
from dino_jax.models import Extractor
from dino_jax.pictures.confusion import confusion
from dino_jax.pictures.page import framed, page, save
from dino_jax.tasks import Result
from dino_jax.tasks.images import add_extraction_arguments, check_complete, extracted, picture_of

HEAD_DIM = 64  # or the next larger one that divides the width
BLOCK = 16  # videos whose features are in memory as float32; those of all are as float16
VIDEOS, FRAMES = 8, 6  # shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument("--data", required=True, metavar="PATH", help="<class>/<video>/<frame>.jpg, or train/ and val/")
    parser.add_argument("--test", default="", metavar="PATH", help="test videos, if --data does not hold them")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use at most N training and N test videos, spread evenly"
    )
    parser.add_argument("--frames", type=int, default=8, help="frames taken from each video, spread evenly")
    parser.add_argument("--rates", type=float, nargs="+", default=list(attentive.RATES), help="learning rates to try")
    parser.add_argument("--epochs", type=int, default=attentive.EPOCHS, help="passes over the training videos")
    parser.add_argument("--train-batch", type=int, default=attentive.BATCH_SIZE, help="videos per training step")
    parser.add_argument(
        "--validation", type=float, default=0.1, help="fraction of the training videos held out for choosing the rate"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed for probe, order and split")
    add_extraction_arguments(parser)


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Trains probes of all learning rates, and tests the one that is best on held-out training videos.

    Raises:
      ValueError: wrong data or settings.
    """
    if min(options.frames, options.epochs, options.train_batch) < 1 or not all(
        0 < rate < math.inf for rate in options.rates
    ):
        raise ValueError("--frames, --epochs, --train-batch and --rates must be above 0")
    check_share(options.validation, "--validation")
    train, test = (clips.part(evenly(len(clips), options.limit)) for clips in open_clips(options.data, options.test))
    if len(np.unique(train.labels)) < 2:
        raise ValueError(f"--limit {options.limit} leaves no training videos of two classes: raise it")
    kept, held = hold_out(train.labels, share=options.validation, seed=options.seed, names=train.class_names)
    splits = train.part(kept), train.part(held), test
    shape = patch_shape(model, splits, options)
    x, held_x, test_x = (patches_of(model, clips, shape, options) for clips in splits)
    heads = _heads(model.width)
    params = _train(x, train.labels[kept], options, classes=len(train.class_names), heads=heads)
    validation = np.mean(attentive.predict(params, held_x, heads=heads) == train.labels[held], axis=1)
    best = int(np.argmax(validation))
    predictions = attentive.predict(params, test_x, heads=heads)
    if (predictions[best] < 0).all():
        raise ValueError(f"every probe diverged at --rates {options.rates}: lower them")
    scores = np.mean(predictions == test.labels, axis=1)
    rows: list[list[str | float]] = [["learning rate", "validation", "test"]]
    for index, rate in enumerate(options.rates):
        mark = " (chosen)" if index == best else ""
        rows.append([f"{rate:g}{mark}", float(validation[index]), float(scores[index])])
    numbers = {
        "video_probe/accuracy": float(scores[best]),
        "video_probe/validation": float(validation[best]),
        "video_probe/rate": float(options.rates[best]),
    }
    return Result(numbers, rows, _draw(test, predictions[best], folder, title=f"Attentive probe, {scores[best]:.1%}"))


def _heads(width: int) -> int:
    """Returns how many heads of HEAD_DIM or more dimensions divide the width."""
    return next(heads for heads in range(max(1, width // HEAD_DIM), 0, -1) if width % heads == 0)


def _train(
    features: np.ndarray, labels: np.ndarray, options: argparse.Namespace, *, classes: int, heads: int
) -> attentive.Params:
    """Trains the probes and shows how far they are."""
    steps = options.epochs * (len(features) // min(options.train_batch, len(features)))
    with tqdm(total=steps, unit=" steps", desc="attentive probes") as bar:

        def advance(loss: float) -> None:
            bar.set_postfix_str(f"lowest loss {loss:.3f}", refresh=False)
            bar.update()

        return attentive.fit(
            features,
            labels,
            classes=classes,
            heads=heads,
            rates=options.rates,
            epochs=options.epochs,
            batch_size=options.train_batch,
            seed=options.seed,
            advance=advance,
        )


def patch_shape(model: Extractor, splits: Sequence[Clips], options: argparse.Namespace) -> tuple[int, ...]:
    """Returns the shape of a video's patch features, `(frames, height, width, dim)`.

    Raises:
      ValueError: wrong settings, or more videos than memory holds.
    """
    frames, mesh = splits[0].sampled(options.frames), sharding.make_mesh()
    work = Extraction(model, frames, size=options.size, outputs=("patches",), batch_size=options.batch_size, mesh=mesh)
    shape = (options.frames, *work.shapes["patches"])
    videos = sum(map(len, splits))
    needed = np.dtype(np.float16).itemsize * videos * math.prod(shape)
    host_memory.check(needed, f"the features of {videos} videos", "use --limit, fewer --frames or a smaller --size")
    return shape


def patches_of(model: Extractor, clips: Clips, shape: tuple[int, ...], options: argparse.Namespace) -> np.ndarray:
    """Returns patch features float16 `(videos, *shape)`.

    Raises:
      ValueError: when a frame cannot be used.
    """
    features = np.empty((len(clips), *shape), np.float16)
    with tqdm(total=len(clips), unit=" videos") as bar:
        for start in range(0, len(clips), BLOCK):
            block = features[start : start + BLOCK]
            frames = clips.part(range(start, start + len(block))).sampled(options.frames)
            found = extracted(model, frames, options, outputs=("patches",), progress=False)
            check_complete(frames, found)
            block[:] = found["patches"].reshape(block.shape)
            bar.update(len(block))
    return features


def _draw(test: Clips, predictions: np.ndarray, folder: Path, *, title: str) -> list[Path]:
    """Draws the confusion matrix, and frames of test videos, misclassified ones first."""
    count = len(test.class_names)
    counts = np.zeros((count, count), int)
    seen = predictions >= 0
    np.add.at(counts, (test.labels[seen], predictions[seen]), 1)
    rows = []
    for video in np.argsort(predictions == test.labels, kind="stable")[:VIDEOS]:
        said = test.class_names[predictions[video]] if predictions[video] >= 0 else "nothing"
        right = bool(predictions[video] == test.labels[video])
        frames = test.sampled(FRAMES)
        shown = [framed(picture_of(frames, FRAMES * video + i), right=right) for i in range(FRAMES)]
        text = f"{test.names[video]}: taken for {said}"
        rows.append([("" if column else text, picture) for column, picture in enumerate(shown)])
    drawn = [save(page(rows, title=title), folder / "videos.png")]
    if counts.any():
        drawn.append(confusion(counts, test.class_names, folder / "confusion.png", title=f"{title}: confusion"))
    return drawn
