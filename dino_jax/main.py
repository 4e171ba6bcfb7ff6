"""Trains: `python -m dino_jax.main --config configs/quickstart.py --workdir runs/quickstart`."""

import argparse
import os
import sys
import warnings


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, runs the recipe and returns the exit code (0 good, 1 failed, 2 wrong input)."""
    parser = argparse.ArgumentParser(
        prog="python -m dino_jax.main", description="Train a DINO model. The same command and workdir continue a run."
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="a recipe, such as configs/quickstart.py"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where the run lives and continues")
    parser.epilog = "--config.KEY=VALUE changes one value; with --config FILE --keys, lists all keys of the recipe."
    parser.add_argument("--keys", action="store_true", help="print every key of the recipe with its value, and stop")
    options, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    try:
        return start(options, overrides(rest))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"stopped: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the last checkpoint is kept", file=sys.stderr)
        return 130


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
            raise ValueError(f"unknown argument {argument!r}: values of the recipe are --config.KEY=VALUE")
        out[key.removeprefix("--config.")] = value if equals else next(arguments, "")
    return out


def start(options: argparse.Namespace, changes: dict[str, str]) -> int:
    """Loads the recipe, then JAX, and trains."""
    from dino_jax import recipe
    from dino_jax.validate import validate

    config = recipe.load(options.config, changes)
    if options.keys:
        for key, value in recipe.flatten(config).items():
            print(f"--config.{key}={value}")
        return 0
    validate(config)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    import jax

    from dino_jax import train

    # A cluster launcher that sets this starts one process per host.
    if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("DINO_JAX_DISTRIBUTED") == "1":
        jax.distributed.initialize()
    devices = jax.devices()
    print(
        f"{len(devices)} {devices[0].platform} device(s) ({devices[0].device_kind}), {jax.process_count()} process(es)"
    )
    train.run(config, options.workdir)
    return 0


def one_line(error: BaseException) -> str:
    """Returns an error's message as one line."""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
