"""Correspondence by patch features, on distorted copies of photographs and between the frames of videos."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dino_jax.data.decode import IMAGE_EXTENSIONS, BadImage, decode
from dino_jax.data.dense import read_image
from dino_jax.data.files import is_image, is_label, open_files
from dino_jax.data.fit import resize
from dino_jax.data.subset import evenly
from dino_jax.data.video import VOID, open_videos
from dino_jax.data.warps import moved, warp
from dino_jax.data.windows import patch_multiple
from dino_jax.evals.correspondence import ALPHAS, match_points, mutual_matches, pck
from dino_jax.models import Extractor
from dino_jax.pictures.matches import matches
from dino_jax.tasks import Result, patches, refuse
from dino_jax.tasks.patches import PatchFeatures

MARGIN = 0.05  # of the side: no points are taken nearer to the border of a distorted copy
GAPS = (1, 5, 10, 20)  # frames from the first to the one in which its points are sought
DRAWN = 0.1  # tolerance that makes a line of the picture right
PAIRS, LINES = 4, 30  # in the picture


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images, points of the first as shares of width and height, and where they are.

    Attributes:
      group: pairs that are scored together.
      truth: `(points, 2)` in the second image; or None, when `inside` says which of its pixels are right.
      inside: bool `(height, width)`.
    """

    name: str
    group: str
    first: np.ndarray
    second: np.ndarray
    points: np.ndarray
    truth: np.ndarray | None = None
    inside: np.ndarray | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    layouts = "any images, or videos with masks as for tracking: a folder, tar or tar.gz"
    patches.add_arguments(parser, data=layouts, size=480, batch_size=None)
    parser.add_argument(
        "--pairs",
        choices=["warps", "videos"],
        default="warps",
        help="warps: find points in a distorted copy, PCK; videos: find an object's points in later frames",
    )
    patches.add_year(parser)
    parser.add_argument(
        "--other", type=Path, metavar="IMAGE", help="match the image --data with this one, and draw the matches"
    )
    parser.add_argument("--points", type=int, default=64, help="points sought in each pair")
    parser.add_argument("--seed", type=int, default=0, help="random seed for distortions and points")


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Seeks points of one image in another by the most similar place.

    Distorted copies give PCK, the share of points found within a tolerance of the truth; videos give the share of an
    object's points that are found on the object again, beside the share that chance would give.

    Raises:
      ValueError: wrong data, or a model without patches.
    """
    patches.check(options, "points")
    if options.other is not None:
        refuse(options, "pairs points seed limit year pixels", "with --other, which draws two images")
        return _two_images(model, options, folder)
    if options.pairs == "warps":
        refuse(options, "year", "with --pairs warps")
    found: dict[str, tuple[str, dict[str, float], list]] = {}
    for features in patches.compared(model, options):
        pairs = _warps(options) if options.pairs == "warps" else _frames(options)
        scores, shown = _score(features, pairs, options)
        if not scores:
            raise ValueError(
                f"{options.data}: no pair has points to seek; what the first frame of a video shows must be seen again "
                f"{', '.join(map(str, GAPS[:-1]))} or {GAPS[-1]} frames later"
            )
        found[features.name] = features.key, scores, shown
    numbers = {f"correspondence/{key}{n}": value for key, scores, _ in found.values() for n, value in scores.items()}
    name = next(iter(found))
    _, scores, shown = found[name]
    rows: list[list[str | float]] = [["correspondence", *found]]
    rows += [[_words(score), *(other[score] for _, other, _ in found.values())] for score in scores]
    headline = f"pck_{DRAWN:g}" if options.pairs == "warps" else "on_object"
    title = f"Points found by patch features, {_words(headline)}: {scores[headline]:.1%}"
    picture = matches([pair for _, pair in shown], [n for n, _ in shown], folder / "matches.png", title=title)
    return Result(numbers, rows, [picture])


def _two_images(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Draws the patches of two images that are each other's nearest."""
    images = []
    for path in (Path(options.data).expanduser(), options.other.expanduser()):
        try:
            images.append(decode(path))
        except BadImage as error:
            raise ValueError(f"{path}: {error}") from None
    features = PatchFeatures(model, batch_size=1)
    grids = [_grid(features, image, options.size) for image in images]
    source, target, cosines = mutual_matches(*grids)
    share = len(cosines) / (grids[0].shape[0] * grids[0].shape[1])
    numbers = {"correspondence/mutual_share": share, "correspondence/mutual_cosine": float(cosines.mean())}
    rows: list[list[str | float]] = [
        ["correspondence", features.name],
        ["patches that are each other's nearest", share],
    ]
    rows.append(["their mean cosine", f"{cosines.mean():.3f}"])
    some = np.linspace(0, len(source) - 1, min(LINES, len(source))).round().astype(int)
    pair = (images[0], images[1], source[some], target[some], None)
    title = f"Patches that are each other's nearest: {len(source)}, {len(some)} of them drawn"
    names = [f"{Path(options.data).name} and {options.other.name}"]
    return Result(numbers, rows, [matches([pair], names, folder / "matches.png", title=title)])


def _warps(options: argparse.Namespace) -> Iterator[Pair]:
    """Makes pairs of images and their distorted copies, with points that both show."""
    files = open_files(options.data)
    names = [name for name in files.names if is_image(name) and not is_label(name)]
    if not names:
        raise ValueError(f"{files.path} has no images (looked for {' '.join(IMAGE_EXTENSIONS)})")
    for number in evenly(len(names), options.limit):
        image, random = read_image(files, names[number]), np.random.default_rng((options.seed, number))
        copy, matrix = warp(image, random=random)
        points = random.random((8 * options.points, 2))
        truth = moved(points, matrix)
        both = ((truth > MARGIN) & (truth < 1 - MARGIN)).all(axis=1)
        points, truth = points[both][: options.points], truth[both][: options.points]
        if len(points):
            yield Pair(names[number], "", image, copy, points, truth=truth)


def _frames(options: argparse.Namespace) -> Iterator[Pair]:
    """Makes pairs of the first frame, with points on its object, and later frames that show the object."""
    videos = open_videos(options.data, year=options.year)
    for number in evenly(len(videos), options.limit):
        frames, masks, name = videos.frames(number), videos.masks(number), videos.videos[number].name
        label = np.unique(masks[0][(masks[0] > 0) & (masks[0] != VOID)])[0]
        places = np.argwhere(masks[0] == label)
        random = np.random.default_rng((options.seed, number))
        chosen = places[random.choice(len(places), min(options.points, len(places)), replace=False)]
        points = (chosen[:, ::-1] + 0.5) / (masks.shape[2], masks.shape[1])
        for gap in GAPS:
            if gap < len(frames) and (masks[gap] == label).any():
                words = f"{name}, {gap} frame{'s' * (gap > 1)} later"
                yield Pair(words, f"gap{gap}", frames[0], frames[gap], points, inside=masks[gap] == label)


def _score(
    features: PatchFeatures, pairs: Iterator[Pair], options: argparse.Namespace
) -> tuple[dict[str, float], list]:
    """Returns the mean scores, and some pairs to be drawn, spread evenly."""
    scores: dict[str, list[float]] = {}
    kept: list[tuple[str, tuple]] = []
    every = 1
    for number, pair in enumerate(pairs):
        first, second = (_grid(features, image, options.size) for image in (pair.first, pair.second))
        found, _ = match_points(first, second, pair.points)
        right, values = _judge(pair, found)
        for name, value in values.items():
            scores.setdefault(name, []).append(value)
        if number % every == 0:
            share, some = f"{pair.name}: {right.mean():.0%} right", slice(0, LINES)
            images = pair.first.copy(), pair.second.copy()  # views would keep their video in memory
            kept.append((share, (*images, pair.points[some], found[some], right[some])))
        # How many will come is not known. A third stays, so that the gaps, of which a video has four, take turns.
        if len(kept) == 3 * PAIRS:
            kept, every = kept[::3], 3 * every
    shown = [kept[place] for place in evenly(len(kept), PAIRS)]
    return {name: float(np.mean(values)) for name, values in sorted(scores.items(), key=_order)}, shown


def _judge(pair: Pair, found: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Returns which points of a pair were found right, bool `(points,)`, and its scores."""
    size = np.array(pair.second.shape[1::-1])
    if pair.inside is not None:
        column, row = (found * size).astype(int).T
        right = pair.inside[row, column]
        values = {"on_object": float(right.mean()), "chance_on_object": float(pair.inside.mean())}
        return right, values | {f"{name}_{pair.group}": value for name, value in values.items()}
    assert pair.truth is not None
    longest = max(size)
    right = np.linalg.norm((found - pair.truth) * size, axis=1) <= DRAWN * longest
    return right, {f"pck_{a:g}": pck(found * size, pair.truth * size, size=longest, alpha=a) for a in ALPHAS}


def _order(item: tuple[str, list[float]]) -> tuple:
    """Puts scores before chance, and wider gaps later."""
    name = item[0]
    return name.startswith("chance"), int(name.rpartition("gap")[2]) if "gap" in name else 0


def _grid(features: PatchFeatures, image: np.ndarray, side: int) -> np.ndarray:
    size = patch_multiple(image.shape[:2], side, features.patch_size)
    return features(resize(image, size)[None])[0]


def _words(score: str) -> str:
    """Says what a score is."""
    if score.startswith("pck"):
        return f"PCK at {score.removeprefix('pck_')}"
    words = "by chance" if score.startswith("chance") else "on the object"
    gap = score.rpartition("gap")[2] if "gap" in score else ""
    return f"{words}, {gap} frame{'s' * (gap != '1')} later" if gap else words
