"""Measures speed: `python -m dino_jax.bench step`, `bench features` and `bench knn` [--json FILE]."""

import argparse
import sys

from dino_jax import command
from dino_jax.benches import features, knn, step
from dino_jax.data.whole import write_json

VERBS = {
    "step": (step.add_arguments, step.bench_step, "the training step: images/s, FLOP/s, compile time, memory"),
    "features": (
        features.add_arguments,
        features.bench_features,
        "inference, beside the PyTorch model of transformers",
    ),
    "knn": (knn.add_arguments, knn.bench_knn, "nearest neighbours, beside faiss and scikit-learn"),
}


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dino_jax.bench", description="Measure speed on this machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (add_arguments, _, words) in VERBS.items():
        verb = verbs.add_parser(name, help=words)
        add_arguments(verb)
        verb.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    return command.run(lambda: start(options))


def start(options: argparse.Namespace) -> None:
    """Measures, and writes the numbers if asked to."""
    _, measure, _ = VERBS[options.verb]
    command.check_output(options.json)
    numbers = measure(options)
    if options.json:
        write_json(options.json, numbers)


if __name__ == "__main__":
    sys.exit(main())
