"""Writes files whole: after a kill or on a full disk, a file is the new one or the one before, never a part.

And tells which checkpoints are whole.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

LAST_WRITTEN = "_CHECKPOINT_METADATA"  # by Orbax, in the folder of a checkpoint
ABANDONED = 3600  # seconds; containers may share the name of their machine, but not the numbers of processes


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file under a temporary name and renames it; its folder is made if need be.

    Other processes may write the same file at the same time: the last one to end wins. What one that was killed has
    left of it is removed.

    Raises:
      OSError: naming the file, which is as it was.
    """
    beginning = f".{path.name}.{os.uname().nodename}."
    temporary = path.with_name(f"{beginning}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent, beginning)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        words = f"{error.strerror}: {path} could not be written, and is as it was; mend that and run again"
        raise OSError(error.errno, words) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Tells whether Orbax wrote a checkpoint to its end."""
    return (folder / LAST_WRITTEN).exists()


def complete_steps(folder: Path) -> list[int]:
    """Lists the checkpoints in a folder, which are named by their steps, that were written to their end."""
    return sorted(int(place.name) for place in folder.glob("*") if place.name.isdecimal() and is_complete(place))


def _remove_abandoned(folder: Path, beginning: str) -> None:
    """Removes old temporary files of a name that processes of this machine wrote which have ended."""
    for file in folder.iterdir():
        process = file.name.removeprefix(beginning).removesuffix(".tmp")
        if file.name == f"{beginning}{process}.tmp" and process.isdecimal() and not _runs(int(process)):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > ABANDONED:
                    file.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as indented JSON, see `write_whole`; numbers that are not finite become null, as JSON has none.

    A file that says so already is left alone: others may be reading it.
    """
    path, content = Path(path), (json.dumps(_finite(obj), indent=2, allow_nan=False) + "\n").encode()
    if not (path.is_file() and path.read_bytes() == content):
        write_whole(path, lambda file: file.write(content))


def _finite(obj: Any) -> Any:
    """Replaces non-finite floats in dicts, lists and tuples by None."""
    if isinstance(obj, dict):
        return {key: _finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_finite(value) for value in obj]
    return None if isinstance(obj, float) and not math.isfinite(obj) else obj
