"""Trains: `python -m dino_jax.main --config configs/quickstart.py --workdir runs/quickstart`."""

import argparse
import logging
import os
import sys
import warnings

EPILOG = """\
Values of the recipe are changed by their key, and keys that are misspelt are an error:
  --config.seed=1 --config.phases.pretrain.steps=1000 --config.data.source=folder --config.data.path=DIR
`--config FILE --keys` prints every key of a recipe with its value.

Running the same command with the same workdir continues the run, bit for bit; SIGTERM and Ctrl-C save first.
Exit codes: 0 done, or stopped after saving; 1 the run failed; 2 wrong input.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, runs the recipe and returns the exit code (0 good, 1 failed, 2 wrong input)."""
    parser = argparse.ArgumentParser(
        prog="python -m dino_jax.main",
        description="Train a DINO model: all phases of a recipe, in one folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="a recipe, such as configs/quickstart.py"
    )
    parser.add_argument("--workdir", metavar="DIR", help="where the run lives and continues")
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
            raise ValueError(f"unknown argument {argument!r}: values of the recipe are changed by --config.KEY=VALUE")
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise ValueError(f"{key} needs a value: {key}=VALUE")
        out[key.removeprefix("--config.")] = value
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
    if not options.workdir:
        raise ValueError("--workdir DIR is missing: it says where the run lives and continues")
    only_our_lines()
    import jax

    from dino_jax import train

    join_cluster()
    if jax.process_index() == 0:
        print(describe_devices(jax.devices(), jax.process_count()), file=sys.stderr)
    train.run(config, options.workdir)
    return 0


def join_cluster() -> None:
    """Connects the processes of a run on several hosts, one per host, started by the same command on each.

    With DINO_JAX_DISTRIBUTED=1 on Cloud TPU, Slurm, Open MPI or Kubernetes they find each other; elsewhere
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where and how many.
    """
    import jax

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address and "JAX_NUM_PROCESSES" in os.environ:
        count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        jax.distributed.initialize(address, num_processes=count, process_id=index)
    elif address or os.environ.get("DINO_JAX_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def only_our_lines() -> None:
    """Keeps remarks of the libraries below off the terminal; their errors still reach it."""
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    for name in ("absl", "tensorboardX.x2num"):
        logging.getLogger(name).setLevel(logging.ERROR)


def describe_devices(devices: list, processes: int) -> str:
    """Says in a line what the run computes on."""
    kind = devices[0].device_kind if devices[0].device_kind != devices[0].platform else devices[0].platform.upper()
    many = f"{len(devices)} devices" if len(devices) > 1 else "1 device"
    return f"{many} ({kind})" + (f" in {processes} processes" if processes > 1 else "")


def one_line(error: BaseException) -> str:
    """Returns an error's message as one line."""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
