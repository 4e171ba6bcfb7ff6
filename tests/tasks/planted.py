"""Data whose colours are the answer, so that raw pixels are features that know everything."""

import argparse
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from dino_jax.tasks import open_task, parse
from dino_jax.tasks.patches import PixelPatches

PATCH = 8
COLORS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [240, 240, 20]], np.uint8)


@jax.tree_util.register_static
class Blind(PixelPatches):
    """Features that know nothing: the same for all patches."""

    def __call__(self, images):
        return {"patches": super().__call__(images)["patches"] * 0 + 1}


def options(task: str, *words: object) -> argparse.Namespace:
    """Parses options as the command line does."""
    parser = argparse.ArgumentParser()
    open_task(task).add_arguments(parser)
    return parse(parser, [str(word) for word in words])


def grid_of(cells: np.ndarray) -> np.ndarray:
    """Enlarges a map by the patch size."""
    return cells.repeat(PATCH, 0).repeat(PATCH, 1).astype(np.uint8)


def save(array: np.ndarray, path: Path) -> None:
    """Writes a PNG, for exact colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def masks(folder: Path, *, classes: int = 3, images: int = 4) -> Path:
    """Writes a segmentation data set of stripes of classes."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(images):
            cells = random.permutation(classes)[np.arange(6) * classes // 6][None].repeat(4, 0)
            mask = grid_of(cells)
            save(COLORS[mask], folder / split / "images" / f"{number}.png")
            save(mask, folder / split / "masks" / f"{number}.png")
    return folder


def depths(folder: Path, *, images: int = 6) -> Path:
    """Writes a data set of relative depth in which the brightness is the depth."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(images):
            depth = grid_of(random.integers(60, 250, (4, 6)))
            save(depth[..., None].repeat(3, -1), folder / split / "images" / f"{number}.png")
            save(depth, folder / split / "depth" / f"{number}.png")
    return folder


def video(folder: Path, *, frames: int = 5) -> Path:
    """Writes two videos of a bright square that moves over a dark ground by whole patches."""
    for number, name in enumerate(("left", "right")):
        for frame in range(frames):
            mask = np.zeros((6, 9), int)
            start = frame if number else frames - frame
            mask[2:4, start : start + 2] = 1
            save(COLORS[grid_of(mask)], folder / name / "frames" / f"{frame:05d}.png")
            save(grid_of(mask), folder / name / "masks" / f"{frame:05d}.png")
    return folder
