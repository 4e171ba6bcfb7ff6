"""Writes the features of a set of images: `python -m dino_jax.features --images DIR --weights PATH --out DIR`."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dino_jax import cluster, command, feature_files, model_options, sharding
from dino_jax.data.fingerprint import same_images
from dino_jax.data.fit import FITS
from dino_jax.data.whole import write_json, write_whole
from dino_jax.extraction import Extraction, bad_images
from dino_jax.feature_outputs import OUTPUTS

EPILOG = """\
The folder receives features-00000-of-00004.npz and so on (names, labels, ids and the outputs of a part of the images),
features.json (the settings) and bad_images.jsonl (what could not be used, and why). Each part is written whole:
after a kill, the same command continues to the same bytes. On several hosts, start it on each (see README): every
process writes its own parts. Read all parts with

  from dino_jax.features import read
  features = read("DIR")  # {"names": ..., "labels": ..., "ids": ..., "cls": (images, dim)}
"""


def main(arguments: list[str] | None = None) -> int:
    """Extracts features; returns the exit code of `command.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m dino_jax.features",
        description="Write the features of a set of images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model_options.add_images(parser)
    model_options.add_weights(parser)
    model_options.add_channels(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the parts")
    parser.add_argument(
        "--format", default="npz", choices=sorted(feature_files.SUFFIXES), help="format of the parts (default npz)"
    )
    parser.add_argument(
        "--outputs",
        default="cls",
        metavar="A,B",
        help=f"one or more of {','.join(OUTPUTS)} (default cls); gem_patch is the generalised mean of the patches",
    )
    parser.add_argument("--layers", type=int, default=1, metavar="N", help="number of last blocks to take (default 1)")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of the images (default 224)")
    parser.add_argument(
        "--fit",
        default="crop",
        choices=FITS,
        help="how images get that size: crop (by the shorter side; the default), centre (by the shorter side, 8/7 of "
        "it, as for k-NN and linear probes), squash (by both sides), native (their own size, in whole patches)",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch (default 64)")
    text = "images per output file; a killed job loses at most one file (default: what fills 256 MiB, at most 4096)"
    parser.add_argument("--part", type=int, metavar="N", help=text)
    parser.add_argument("--float16", action="store_true", help="store the features as float16 (default float32)")
    text = "write images/s and counts to this file; of several processes, each writes its own (FILE, FILE-1, ...)"
    parser.add_argument("--json", type=Path, metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    return command.run(lambda: start(options), interrupted="interrupted: run the same command to continue")


def start(options: argparse.Namespace) -> None:
    """Checks the options, joins the other processes and writes the parts that are missing."""
    command.only_our_lines()
    feature_files.require(options.format)
    command.check_output(options.json)
    cluster.join()
    with command.output_folder(options.out):
        write(options)


def write(options: argparse.Namespace) -> None:
    """Opens images and model, and writes this process's parts."""
    source, model = model_options.open_both(options)
    # Each process works alone, on parts of its own, so that nobody waits for anybody.
    mesh = sharding.make_mesh(devices=jax.local_devices())
    work = Extraction(
        model,
        source,
        size=options.size,
        outputs=[name for name in options.outputs.split(",") if name],
        layers=options.layers,
        batch_size=options.batch_size,
        mesh=mesh,
        how=options.fit,
        images_per_shard=options.part,
    )
    numbers = write_parts(
        work,
        options.out,
        kind=options.format,
        dtype="float16" if options.float16 else "float32",
        process=(jax.process_index(), jax.process_count()),
    )
    if options.json:
        write_json(_own(options.json, jax.process_index()), numbers)


def write_parts(
    work: Extraction, folder: Path, *, kind: str, dtype: str = "float32", process: tuple[int, int] = (0, 1)
) -> dict[str, float]:
    """Writes the parts of this process that are not there yet, and lists the images that cannot be used.

    Args:
      work: what to compute.
      folder: receives the files.
      kind: "npz", "parquet" or "arrayrecord".
      dtype: of the stored features.
      process: number of this process and of all.

    Returns:
      "features/images_per_second" (of what was computed now), "features/images", "features/bad_images" and
      "features/seconds", of this process.

    Raises:
      ValueError: if the folder holds features of other settings, or no image can be used.
    """
    settings = work.settings() | {"format": kind, "dtype": dtype, "parts": work.count}
    _claim(folder, settings)
    mine = range(process[0], work.count, process[1])
    total = sum(len(work.images_of(number)) for number in mine)
    computed = done = 0
    started = time.monotonic()
    kept: list[np.ndarray] = []
    with tqdm(total=total, unit=" images", mininterval=1 if sys.stderr.isatty() else 30, disable=process[0] > 0) as bar:
        for number in mine:
            path = feature_files.path_of(folder, number, work.count, kind)
            ids = _finished(path, work, kind)
            if ids is None or work.has_mended(number, ids):
                features = work.compute(number, bar.update)
                ids = features["ids"]
                computed += len(work.images_of(number))
                feature_files.write(path, _named(work, features, dtype), kind)
            done += len(work.images_of(number))
            bar.update(done - bar.n)
            kept.append(ids)
    seconds = time.monotonic() - started
    bad = _list_bad(work, mine, np.concatenate([*kept, np.zeros(0, np.int32)]), folder, process[0])
    if process[0] == 0:
        speed = f"{computed / seconds:.1f} images/s" if computed or not total else "all were there already"
        count = f"{total - bad} image{'s' * (total - bad != 1)}"
        whose = " of this process" if process[1] > 1 else ""
        print(f"{count}{whose}, {bad} could not be used; {speed}; features: {folder}")
    if total and bad == total:
        raise ValueError(f"none of the {total} images can be used: see {_bad_file(folder, process[0])}")
    return {
        "features/images": total - bad,
        "features/bad_images": bad,
        "features/seconds": seconds,
        "features/images_per_second": computed / seconds,
    }


def read(folder: str | Path) -> dict[str, np.ndarray]:
    """Reads all parts of a folder into memory.

    Returns:
      "names" (str), "labels", "ids" `(images,)` and the outputs `(images, ...)`, in the order of the images.

    Raises:
      ValueError: if it is not such a folder, or is not finished.
    """
    folder = Path(folder)
    file = folder / "features.json"
    if not file.exists():
        raise ValueError(f"{folder} has no features.json: it was not written by python -m dino_jax.features")
    settings = json.loads(file.read_text())
    kind, count = settings["format"], settings["parts"]
    paths = [feature_files.path_of(folder, number, count, kind) for number in range(count)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of {count} parts, such as {missing[0]}: run the command again")
    shapes = {name: tuple(shape) for name, shape in settings["shapes"].items()}
    parts = [feature_files.read(path, shapes, kind) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in (*feature_files.SCALARS, *shapes)}


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings, or makes sure that they are those of the folder."""
    file = folder / "features.json"
    settings = json.loads(json.dumps(settings))
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
        return
    try:
        there = json.loads(file.read_text())
    except ValueError:
        raise ValueError(f"{file} is damaged: remove it to continue") from None
    different = [name for name in settings if there.get(name) != settings[name]]
    if different == ["images"] and same_images(there["images"], settings["images"]):  # some were mended
        write_json(file, settings)
    elif different:
        name = "number_of_images" if "number_of_images" in different else different[0]
        shown = f"{name.replace('_', ' ')} {there.get(name)!r} there, {settings[name]!r} now"
        shown = "other images" if name == "images" else shown
        raise ValueError(f"{folder} holds features of other settings ({shown}): choose another --out")


def _finished(path: Path, work: Extraction, kind: str) -> np.ndarray | None:
    """Returns the ids in a part that is there and whole."""
    if not path.exists():
        return None
    try:
        return feature_files.read(path, work.shapes, kind)["ids"]
    except ValueError as error:
        print(f"{command.one_line(error)}; it is computed again", file=sys.stderr)
        return None


def _named(work: Extraction, features: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Puts the names first and the outputs into their stored dtype."""
    names = np.array([command.printable(work.source.name(int(index))) for index in features["ids"]], dtype=str)
    scalars = {name: features[name] for name in feature_files.SCALARS if name != "names"}
    return {"names": names} | scalars | {name: features[name].astype(dtype) for name in work.shapes}


def _list_bad(work: Extraction, mine: range, ids: np.ndarray, folder: Path, process: int) -> int:
    """Writes the list of images that cannot be used, and returns how many there are."""
    among = [index for number in mine for index in work.images_of(number)]
    bad = list(bad_images(work.source, ids, among, work.prepare))
    text = "".join(json.dumps(entry) + "\n" for entry in bad).encode()
    write_whole(_bad_file(folder, process), lambda file: file.write(text))
    return len(bad)


def _bad_file(folder: Path, process: int) -> Path:
    return _own(folder / "bad_images.jsonl", process)


def _own(file: Path, process: int) -> Path:
    """Returns where a process writes a file that each has of its own: the first one there, others beside it."""
    return file.with_stem(f"{file.stem}-{process}") if process else file


if __name__ == "__main__":
    sys.exit(main())
