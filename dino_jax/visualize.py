"""Draws what a network sees: `python -m dino_jax.visualize KIND --images DIR --weights PATH`."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dino_jax import command, host_memory, model_options
from dino_jax.data.sources import Source
from dino_jax.data.subset import middles
from dino_jax.models import Extractor
from dino_jax.pictures import film
from dino_jax.pictures.colors import glow, heat, visible
from dino_jax.pictures.components import shared_components
from dino_jax.pictures.page import in_rows, overview, page, save
from dino_jax.pictures.similarity import similarity_page
from dino_jax.views import Attention, cls_attention, open_some, patch_features, photographs, sequences

KINDS = {
    "pca": "principal components of the patch features as colours, one basis for all images",
    "attention": "where CLS looks, head by head",
    "similarity": "a page on which a click shows where else the features are alike",
    "video": "attention and components of the frames of a video, as GIF and MP4",
}
# Bytes of a file's name. Most file systems allow 255, which the name of a file that is being written has to fit, with
# the machine's in it.
LONGEST_STEM = 150
WIDE = 900  # pixels: such pictures are drawn below each other
PEAK = 99.5  # percentile of a map that is drawn brightest: single patches would darken the rest


def main(arguments: list[str] | None = None) -> int:
    """Draws; returns the exit code of `command.run`."""
    parser = argparse.ArgumentParser(prog="python -m dino_jax.visualize", description="Draw what a network sees.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, what in KINDS.items():
        kind = kinds.add_parser(name, help=what, description=f"Draws {what}.", allow_abbrev=False)
        model_options.add_images(kind)
        model_options.add_weights(kind)
        model_options.add_channels(kind)
        kind.add_argument(
            "--out",
            type=Path,
            default=Path("pictures"),
            metavar="DIR",
            help="folder for the pictures (default pictures)",
        )
        text = "shorter side of the images in pixels; larger shows more detail (default: their own)"
        kind.add_argument("--size", type=int, default=0, metavar="PX", help=text)
        most, text = 12, "maximum number of images, spread evenly over all of them (default 12)"
        if name == "video":
            most, text = 500, "maximum number of frames; of more, every second, third and so on is drawn (default 500)"
        kind.add_argument("--number", type=int, default=most, metavar="N", help=text)
    kinds.choices["pca"].add_argument("--foreground", action="store_true", help="draw the foreground only")
    kinds.choices["video"].add_argument(
        "--sequence", metavar="NAME", help="folder of the frames to draw (default: the first)"
    )
    kinds.choices["video"].add_argument("--fps", type=float, default=8.0, help="frames per second (default 8)")
    options = parser.parse_args(arguments)
    return command.run(lambda: start(options), interrupted="interrupted: the pictures drawn so far are kept")


def start(options: argparse.Namespace) -> None:
    """Loads the model, opens the images and draws."""
    command.only_our_lines()
    if options.number < 1 or options.size < 0 or getattr(options, "fps", 1.0) <= 0:
        raise ValueError("--number and --fps must be positive, and --size not negative")
    draw = {"pca": draw_pca, "attention": draw_attention, "similarity": draw_similarity, "video": draw_video}
    with command.output_folder(options.out):
        source, model = model_options.open_both(options)
        if options.kind in ("attention", "video"):
            model.check_attention()
        for path in draw[options.kind](model, source, options):
            print(command.printable(path))


def draw_pca(model: Extractor, source: Source, options: argparse.Namespace) -> list[Path]:
    """Draws each image beside its components at native resolution, and an overview of all."""
    opened = _opened(model, source, options)
    grids = [patch_features(model, image) for _, image in opened]
    components = shared_components(grids, foreground=options.foreground)
    pairs = []
    for (name, image), grid in zip(opened, grids, strict=True):
        height, width = image.shape[:2]
        pairs.append((name, [visible(image), components.paint(grid, height=height, width=width)]))
    paths = _named_files(options.out / "pca", pairs)
    for path, (_, pair) in zip(paths, pairs, strict=True):
        save(page([[("", picture) for picture in pair]]), path)
    return [save(overview(pairs), options.out / "pca.png"), *paths]


def draw_attention(model: Extractor, source: Source, options: argparse.Namespace) -> list[Path]:
    """Draws each image beside its attention maps at native resolution; registers are a share in words, not a place."""
    opened = _opened(model, source, options)
    paths = _named_files(options.out / "attention", opened)
    for path, (_, image) in zip(paths, opened, strict=True):
        save(attention_sheet(visible(image), cls_attention(model, image)), path)
    return paths


def draw_similarity(model: Extractor, source: Source, options: argparse.Namespace) -> list[Path]:
    """Writes the page."""
    opened = _opened(model, source, options)
    features = [patch_features(model, image) for _, image in opened]
    names = [name for name, _ in opened]
    title = f"Patch similarity, {model.name}"
    shown = [visible(image) for _, image in opened]
    return [similarity_page(shown, features, options.out / "similarity.html", names=names, title=title)]


def draw_video(model: Extractor, source: Source, options: argparse.Namespace) -> list[Path]:
    """Draws every frame beside its attention and its components, with one scale and one basis for the whole film."""
    name, indices = _sequence(source, options.sequence)
    places = range(0, len(indices), -(-len(indices) // options.number))
    opened = [image for _, image in open_some(source, indices, places, size=options.size, patch=model.patch_size)]
    if len({image.shape for image in opened}) > 1:
        where = f"of {name}" if name else "beside each other"
        raise ValueError(f"the frames {where} differ in size: put the frames of each video into a folder of its own")
    everything = 6 * sum(image.nbytes for image in opened)  # with three panels of each, and what GIF makes of them
    host_memory.check(everything, f"a film of {len(opened)} frames", "draw fewer (--number) or smaller ones (--size)")
    maps = [cls_attention(model, image).maps.mean(0) for image in opened]
    grids = [patch_features(model, image) for image in opened]
    components = shared_components(grids)
    high = float(np.percentile(np.stack(maps), PEAK))
    frames = []
    for shown, weights, grid in zip(visible(np.stack(opened)), maps, grids, strict=True):
        height, width = shown.shape[:2]
        painted = components.paint(grid, height=height, width=width)
        panels = [shown, glow(shown, weights, high=high), painted]
        frames.append(page(in_rows([("", panel) for panel in panels], 3 if width < WIDE else 1)))
    stem = f"video-{_stem(name) or _name_of(Path(options.images))}"
    paths = [film.gif(frames, options.out / f"{stem}.gif", per_second=options.fps)]
    encoded = film.mp4(frames, options.out / f"{stem}.mp4", per_second=options.fps)
    if encoded is None:
        print("no MP4 was written: it needs pip install -e '.[video]'", file=sys.stderr)
    return paths + ([encoded] if encoded else [])


def attention_sheet(image: np.ndarray, attention: Attention) -> np.ndarray:
    """Lays out an image, the mean of its attention maps over it, and the map of every head with its shares."""
    height, width = image.shape[:2]
    mean = attention.maps.mean(0)
    panels = [
        ("image", image),
        (f"mean of {len(attention.maps)} heads", glow(image, mean, high=float(np.percentile(mean, PEAK)))),
    ]
    for head, (weights, shares) in enumerate(zip(attention.maps, attention.shares, strict=True), start=1):
        drawn = heat(weights, high=float(np.percentile(weights, PEAK)), height=height, width=width)
        panels.append((f"head {head}: {_shares(shares)}", drawn))
    columns = 1 if width >= WIDE else 4 if len(panels) > 6 else 3
    return page(in_rows(panels, columns))


def _shares(shares: np.ndarray) -> str:
    cls, registers, patches = (f"{share:.0%}" for share in shares)
    return f"patches {patches}, registers {registers}, CLS {cls}" if shares[1] else f"patches {patches}, CLS {cls}"


def _opened(model: Extractor, source: Source, options: argparse.Namespace) -> list[tuple[str, np.ndarray]]:
    """Opens at most `--number` images, spread evenly over the source; masks are left out."""
    indices = photographs(source)
    places = middles(len(indices), options.number)
    if len(places) < len(indices):
        print(f"{len(places)} of {len(indices)} images are drawn: --number N draws more", file=sys.stderr)
    return open_some(source, indices, places, size=options.size, patch=model.patch_size)


def _name_of(path: Path) -> str:
    """Returns the name of the video whose frames lie in a folder or tar: "bear" of `bear/frames` or `bear.tar.gz`."""
    path = path.expanduser().resolve()
    path = path.parent if path.name == "frames" else path
    return path.name.split(".")[0] or "frames"


def _named_files(folder: Path, named: Sequence[tuple[str, object]]) -> list[Path]:
    """Returns a file for each name, numbered where two would be the same."""
    stems = [_stem(str(PurePosixPath(name).with_suffix(""))) for name, _ in named]
    taken, files = set(stems), []
    for index, stem in enumerate(stems):
        name = stem
        if stems.count(stem) > 1:
            name = next(new for number in itertools.count(index) if (new := f"{stem}-{number}") not in taken)
            taken.add(name)
        files.append(folder / f"{name}.png")
    return files


def _stem(name: str) -> str:
    """Makes one name of a path, its folders parted by dashes; the beginning is left out where that is too long."""
    whole = "-".join(PurePosixPath(name).parts).encode("utf-8", "surrogateescape")
    return whole[-LONGEST_STEM:].decode("utf-8", "surrogateescape" if len(whole) <= LONGEST_STEM else "ignore")


def _sequence(source: Source, wanted: str | None) -> tuple[str, list[int]]:
    """Returns the frames of the sequence that was asked for, or of the first."""
    found = sequences(source)
    if not found:
        raise ValueError("no frames: all folders are called masks or annotations")
    name = next(iter(found)) if wanted is None else wanted
    if name not in found:
        known = ", ".join(sorted(name or "(frames outside of folders: leave --sequence out)" for name in found))
        raise ValueError(f"there is no sequence {name!r}: there are {known}")
    return name, found[name]


if __name__ == "__main__":
    sys.exit(main())
