"""Evaluates weights: `python -m dino_jax.evaluate TASK --weights PATH --data ...`."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dino_jax import cluster, command, model_options
from dino_jax.data.whole import write_json
from dino_jax.progress import table
from dino_jax.tasks import ANY_CHANNELS, TASKS, open_task, parse


def main(arguments: list[str] | None = None) -> int:
    """Runs one evaluation task; returns the exit code of `command.run`."""
    given = sys.argv[1:] if arguments is None else arguments
    return command.run(lambda: start(given), interrupted="interrupted: no result was written")


def outline() -> argparse.ArgumentParser:
    """Builds the parser that explains the tasks."""
    lines = [f"  {name:16} {what}" for name, what in TASKS.items()]
    return argparse.ArgumentParser(
        prog="python -m dino_jax.evaluate",
        usage="python -m dino_jax.evaluate TASK --weights PATH [options of the task]",
        description="Evaluate a checkpoint, or any loaded weights, by one protocol.",
        epilog="tasks:\n" + "\n".join(lines) + "\n\n`python -m dino_jax.evaluate TASK --help` lists a task's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default in ("", [])
        return action.help if nothing else super()._get_help_string(action)


def task_parser(name: str, add_arguments: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """Builds the parser of one task: what all tasks share, and its own options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m dino_jax.evaluate {name}",
        description=TASKS[name],
        formatter_class=Defaults,
        allow_abbrev=False,
    )
    parser.add_argument("task", choices=[name], help=argparse.SUPPRESS)
    model_options.add_weights(parser)
    if name in ANY_CHANNELS:
        model_options.add_channels(parser)
        model_options.add_bits(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="folder for the pictures")
    add_arguments(parser)
    return parser


def check_data(options: argparse.Namespace) -> None:
    """Raises ValueError when data that the options name is not there: large weights take minutes to load."""
    for name in ("data", "test", "other", "distractors", "whitening"):
        path = getattr(options, name, None)
        if path and path != "packaged" and not Path(path).expanduser().exists():
            raise ValueError(f"--{name} {path} does not exist: check the path")


def start(arguments: list[str]) -> None:
    """Loads the weights, runs the task, and shows and writes what it found."""
    # The task's own options are known only once its name is, which stands first or last, or at least somewhere.
    ends = [*arguments[:1], *arguments[-1:]]
    words = [word for word in (*ends, *arguments) if word in TASKS] or [w for w in ends if not w.startswith("-")]
    name = words[0] if words else None
    if name not in TASKS and {"-h", "--help"} & {*arguments}:
        outline().parse_args(["--help"])
    if name is None:
        raise ValueError(f"which task? There are {', '.join(TASKS)}")
    task = open_task(name)
    options = parse(task_parser(name, task.add_arguments), arguments)
    cluster.check_one_process("evaluate")
    command.only_our_lines()
    check_data(options)
    command.check_output(options.json)
    model = model_options.load_model(options)
    channels = model.backbone.in_channels
    if channels != 3 and name not in ANY_CHANNELS:
        raise ValueError(
            f"--weights {options.weights} take {channels} channel{'s' * (channels > 1)}, but {name} reads RGB images; "
            f"other channels are read by {', '.join(ANY_CHANNELS)}"
        )
    started = time.monotonic()
    with command.output_folder(options.out), command.output_folder(options.out / name):
        result = task.run(model, options, options.out / name)
    print(table(result.rows))
    for picture in result.pictures:
        print(f"picture: {picture}")
    if options.json:
        write_json(options.json, result.numbers | {f"{name}/seconds": time.monotonic() - started})


if __name__ == "__main__":
    sys.exit(main())
