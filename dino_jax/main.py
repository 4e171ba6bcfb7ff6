"""Trains: `python -m dino_jax.main --config configs/quickstart.py --workdir runs/quickstart`."""

import argparse
import sys

from dino_jax import cluster, command, startup

EPILOG = """\
Values of the recipe are changed by key; a misspelt key is an error:
  --config.seed=1 --config.phases.pretrain.steps=1000 --config.data.source=folder --config.data.path=DIR
`--config FILE --keys` prints every key of a recipe with its value.

Running the same command with the same workdir continues the run, bit for bit; SIGTERM and Ctrl-C save first.
Exit codes: 0 done, or stopped after saving; 1 the run failed; 2 wrong input; 130 stopped at once.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, runs the recipe and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dino_jax.main",
        description="Train a DINO model: all phases of a recipe, in one folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="recipe, such as configs/quickstart.py"
    )
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run; an existing run is continued")
    parser.add_argument("--keys", action="store_true", help="print every key of the recipe with its value, and stop")
    options, rest = parser.parse_known_args(arguments)
    words = "interrupted: the last checkpoint is kept"
    return command.run(lambda: start(options, overrides(rest)), interrupted=words, trains=True)


def overrides(rest: list[str]) -> dict[str, str]:
    """Reads `--config.KEY=VALUE` (or `--config.KEY VALUE`) arguments.

    Raises:
      ValueError: for anything else.
    """
    out: dict[str, str] = {}
    arguments = iter(rest)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not key.startswith("--config."):
            raise ValueError(f"unknown argument {argument!r}: values of the recipe are changed by --config.KEY=VALUE")
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise ValueError(f"{key} needs a value: {key}=VALUE")
        out[key.removeprefix("--config.")] = value
    return out


def start(options: argparse.Namespace, changes: dict[str, str]) -> None:
    """Loads the recipe, checks it, and trains."""
    from dino_jax import recipe
    from dino_jax.validate import validate

    config = recipe.load(options.config, changes)
    if options.keys:
        for key, value in recipe.flatten(config).items():
            print(f"--config.{key}={value}")
        return
    validate(config)
    if not options.workdir:
        raise ValueError("--workdir DIR is missing: it is the folder of the run")
    command.only_our_lines()
    startup.choose_loops(min(config.dino_head.hidden, config.ibot_head.hidden))
    import jax

    from dino_jax import train

    cluster.join()
    if jax.process_index() == 0:
        devices = cluster.describe_devices(jax.devices(), jax.process_count())
        print(devices, *recipe.left_behind(options.config, changes), sep="\n", file=sys.stderr)
    train.run(config, options.workdir)


if __name__ == "__main__":
    command.leave_on_signals("interrupted: the last checkpoint is kept")
    sys.exit(main())
