"""Video object segmentation by label propagation: DINO, arXiv 2104.14294, section 4.2.2; DINOv3, section 6.1.4."""

import argparse
import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dino_jax.data.fit import resize
from dino_jax.data.subset import evenly
from dino_jax.data.video import Videos, open_videos
from dino_jax.data.windows import patch_multiple
from dino_jax.evals.tracking import CONTEXT, RADIUS, TEMPERATURE, TOP_K, propagate, score_video
from dino_jax.models import Extractor
from dino_jax.pictures.video import gif, strips
from dino_jax.tasks import Result, patches
from dino_jax.tasks.patches import PatchFeatures

STRIPS = 6  # videos in the picture
FRAMES = 5  # frames of each

Scores = dict[int, tuple[float, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    layouts = "DAVIS, or <sequence>/{frames,masks}: a folder, tar or tar.gz"
    patches.add_arguments(parser, data=layouts, size=480, batch_size=8)
    patches.add_year(parser)
    parser.add_argument(
        "--context", type=int, default=CONTEXT, help="number of preceding frames that vote, besides the first"
    )
    parser.add_argument("--radius", type=int, default=RADIUS, help="radius of the neighbourhood in patches")
    parser.add_argument("--top-k", type=int, default=TOP_K, help="number of neighbours that vote")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="temperature of the vote")


def run(model: Extractor, options: argparse.Namespace, folder: Path) -> Result:
    """Follows the objects of the first frames, and scores regions (J) and boundaries (F) as DAVIS does.

    Raises:
      ValueError: wrong data or settings, or a model without patches.
    """
    patches.check(options, "context", "radius", "top_k")
    if not 0 < options.temperature < math.inf:
        raise ValueError(f"--temperature {options.temperature:g} must be above 0 and finite")
    videos = open_videos(options.data, year=options.year)
    chosen = evenly(len(videos), options.limit)
    # What is wrong with the data is said before the work, not after a part of it.
    for index in tqdm(chosen, unit=" videos", desc="checking"):
        videos.frames(index), videos.masks(index)
    shown = [chosen[place] for place in evenly(len(chosen), STRIPS)]
    numbers: dict[str, float] = {}
    scores: dict[str, dict[str, Scores]] = {}
    masks: dict[str, dict[int, np.ndarray]] = {}
    for features in patches.compared(model, options):
        found = {}
        for index in tqdm(chosen, unit=" videos", desc=features.name):
            truth = videos.masks(index)
            followed = _follow(features, videos.frames(index), truth[0], options)
            found[videos.videos[index].name] = score_video(truth, followed)
            if index in shown:
                masks.setdefault(features.name, {})[index] = followed
        scores[features.name] = found
        numbers |= _numbers(found, features.key)
    return Result(numbers, _rows(scores), _draw(videos, masks, scores, folder))


def _follow(
    features: PatchFeatures, frames: np.ndarray, first_mask: np.ndarray, options: argparse.Namespace
) -> np.ndarray:
    size = patch_multiple(frames.shape[1:3], options.size, features.patch_size)
    grids = features(np.stack([resize(frame, size) for frame in frames]))
    return propagate(
        grids,
        first_mask,
        context=options.context,
        radius=options.radius,
        top_k=options.top_k,
        temperature=options.temperature,
    )


def _means(scores: dict[str, Scores]) -> tuple[float, float, float]:
    """Returns J&F, J and F, the means over all objects of all videos."""
    region, border = np.mean([pair for objects in scores.values() for pair in objects.values()], axis=0)
    return float(region + border) / 2, float(region), float(border)


def _numbers(scores: dict[str, Scores], key: str) -> dict[str, float]:
    numbers = dict(zip(("jf", "j", "f"), _means(scores), strict=True))
    numbers |= {f"jf_{name}": _means({name: objects})[0] for name, objects in scores.items()}
    return {f"tracking/{key}{name}": value for name, value in numbers.items()}


def _rows(scores: dict[str, dict[str, Scores]]) -> list[list[str | float]]:
    """Lists J&F, J and F of the whole and of each video, the features side by side."""
    rows: list[list[str | float]] = [["tracking", *(f"{name}: {m}" for name in scores for m in ("J&F", "J", "F"))]]
    rows.append(["all objects", *(value for found in scores.values() for value in _means(found))])
    for video in next(iter(scores.values())):
        rows.append([video, *(value for found in scores.values() for value in _means({video: found[video]}))])
    return rows


def _draw(
    videos: Videos, masks: dict[str, dict[int, np.ndarray]], scores: dict[str, dict[str, Scores]], folder: Path
) -> list[Path]:
    """Draws videos as strips, truth above prediction, and the one of middling score as a GIF, truth at the left."""
    name = next(iter(masks))
    rows = []
    for index, followed in masks[name].items():
        frames, truth, video = videos.frames(index), videos.masks(index), videos.videos[index].name
        places = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
        jf = f"J&F {_means({video: scores[name][video]})[0]:.1%}"
        rows.append((f"{video}: truth", frames[places], truth[places]))
        rows.append((f"{video}: {name}, {jf}", frames[places], followed[places]))
    overall = f"J&F {_means(scores[name])[0]:.1%} over {len(scores[name])} videos"
    pictures = [strips(rows, folder / "tracking.png", title=f"Objects of the first frame followed: {overall}")]
    order = sorted(masks[name], key=lambda index: _means({"": scores[name][videos.videos[index].name]})[0])
    index = order[len(order) // 2]
    for earlier in folder.glob("tracking_*.gif"):  # of another evaluation
        earlier.unlink()
    path = folder / f"tracking_{videos.videos[index].name}.gif"
    pictures.append(gif(videos.frames(index), [videos.masks(index), masks[name][index]], path))
    return pictures
