"""Converts weights: `python -m dino_jax.convert SOURCE --to {orbax,official,hf,timm} --out PATH`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dino_jax import command
from dino_jax.data.whole import write_json
from dino_jax.weights import store
from dino_jax.weights.files import refuse_existing, replacing, same_bits
from dino_jax.weights.manifest import Manifest
from dino_jax.weights.store import FORMATS, ManifestError, Weights

EPILOG = """\
SOURCE is an official .pth, a Hugging Face or timm folder or file, a folder of our own, or a run (its workdir,
checkpoints/<step> or gram_teacher/<step>). Without --to, it is read and accounted for, and nothing is written.

Formats: orbax (ours, a folder), official (a .pth that the papers' PyTorch code loads), hf (a folder for transformers),
timm (a folder). What a format has no place for, such as the mask token in timm's, is kept beside it in
dino_jax.safetensors, so that converting back is lossless.
"""


def main(arguments: list[str] | None = None) -> int:
    """Converts; returns the exit code of `command.run`."""
    options = parser().parse_args(arguments)
    return command.run(lambda: convert(options), interrupted="interrupted: nothing was written")


def parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    out = argparse.ArgumentParser(
        prog="python -m dino_jax.convert",
        description="Convert weights between PyTorch, Hugging Face, timm and dino_jax, accounting for every tensor.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument("source", metavar="SOURCE", help="weights to read")
    out.add_argument("--to", choices=FORMATS, help="format to write")
    out.add_argument("--out", type=Path, metavar="PATH", help="file (official) or folder to write")
    out.add_argument("--arch", metavar="NAME", help="architecture that the weights must have, such as dinov3_vitl16")
    out.add_argument(
        "--branch",
        choices=("teacher", "student"),
        default="teacher",
        help="network to take from a training checkpoint (default teacher)",
    )
    out.add_argument("--heads", type=int, metavar="N", help="number of attention heads, if the weights do not tell")
    out.add_argument(
        "--check", action="store_true", help="compare both sides on a random image (needs the extra: reference)"
    )
    out.add_argument("--force", action="store_true", help="replace the weights at --out")
    out.add_argument(
        "--manifest", type=Path, metavar="FILE", help="write what became of every tensor to this file, as JSON"
    )
    out.add_argument("--json", type=Path, metavar="FILE", help="write counts, differences and seconds to this file")
    return out


def convert(options: argparse.Namespace) -> None:
    """Reads, accounts, writes and checks.

    Raises:
      ValueError: for wrong input, in one line.
    """
    if bool(options.to) != bool(options.out):
        raise ValueError("--to FORMAT and --out PATH go together")
    if options.force and not options.to:
        raise ValueError("--force has no effect without --to and --out: leave it out")
    command.only_our_lines()
    from dino_jax import pretrained

    command.check_output(options.json)
    if options.out:
        refuse_existing(options.out, folder=options.to != "official", force=options.force)
    started = time.monotonic()
    heads = {"heads": options.heads} if options.heads is not None else {}
    try:
        weights = pretrained.read(options.source, options.arch, branch=options.branch, **heads)
    except ManifestError as error:
        report(error.manifest, "read", options.manifest)
        raise
    a = weights.architecture
    count = sum(x.size for x in weights.params.values())
    print(f"{options.source}: {a.name} ({a.describe()}), {count:,} numbers")
    report(weights.manifest, "read", options.manifest)
    numbers: dict[str, float] = {f"read/{kind}": n for kind, n in weights.manifest.counts().items()}
    numbers["parameters"] = count
    if options.to:
        written = store.save(weights, options.out, options.to, force=options.force)
        if written:
            report(written, "written", None)
            numbers |= {f"written/{kind}": n for kind, n in written.counts().items()}
        print(f"written: {options.out}")
    if options.check:
        numbers |= check(weights, options.to, options.out)
    if options.json:
        write_json(options.json, numbers | {"seconds": time.monotonic() - started})


def report(manifest: Manifest, verb: str, file: Path | None) -> None:
    """Prints a manifest as a table with its counts below, and writes it to `file` if there is one."""
    rows = manifest.table()
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest.counts().items())
    print(f"{verb} ({manifest.layout}): {counts}")
    if file:
        with replacing(file) as temporary:
            temporary.write_text(manifest.to_json())


def check(weights: Weights, to: str | None, out: Path | None) -> dict[str, float]:
    """Compares our features with those of transformers or timm, and prints the largest differences.

    Official files and our own are checked through the library that has the network, whose tensors are the same, and
    so are timm's of a size that it cannot build.
    """
    from dino_jax.weights import configs, reference

    family = weights.architecture.family
    library = to if to in ("hf", "timm") else "timm" if family == "resnet" else "hf"
    unknown = not configs.timm(weights.architecture, weights.mean, weights.std, biased=False)["architecture"]
    if library == "timm" and unknown and family != "resnet":
        library = "hf"
    with tempfile.TemporaryDirectory() as temporary:
        if to is not None and out is not None:
            again = store.read(out, **_untold(weights) if to == "official" else {})
            same = [same_bits(x, again.params[path]) for path, x in weights.params.items() if path in again.params]
            print(f"check: read back from {out}, {sum(same)} of {len(weights.params)} parameters are the same")
        folder = out if library == to and out is not None else Path(temporary) / "weights"
        if folder != out:
            store.save(weights, folder, library)
        found = reference.differences(store.read(folder, **_untold(weights)), folder, library)
    name = {"hf": "transformers", "timm": "timm"}[library]
    same_layout = library == to or (to is None and weights.manifest.layout.startswith(library))
    via = "" if same_layout else f", which has this network too ({to or 'the source'} has no code for it here)"
    print(f"check: largest difference from {name}{via}")
    for what, difference in found.items():
        print(f"  {what}: {difference:.1e}")
    return {f"difference/{name}/{what}": difference for what, difference in found.items()}


def _untold(weights: Weights) -> dict[str, Any]:
    """Returns options that a state dict of a network of unpublished size does not show."""
    custom = weights.architecture.name.endswith("_custom")
    return (
        {"heads": weights.architecture.options["heads"]} if custom and "heads" in weights.architecture.options else {}
    )


if __name__ == "__main__":
    sys.exit(main())
