"""Files are there whole or not at all, whoever else writes them."""

import errno
import os
import subprocess
import sys

import pytest

from dino_jax.data.whole import write_json, write_whole


def test_two_writers_at_once_leave_a_whole_file(tmp_path):
    """Another process writes the same file from beginning to end while this one writes."""
    path = tmp_path / "folder" / "part.npz"
    program = "import sys; from pathlib import Path; from dino_jax.data.whole import write_whole; "
    program += "write_whole(Path(sys.argv[1]), lambda file: file.write(b'theirs' * 100))"

    def write(file):
        file.write(b"ours" * 100)
        file.flush()
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)
        assert path.read_bytes() == b"theirs" * 100
        file.write(b"ours" * 100)

    write_whole(path, write)
    assert path.read_bytes() == b"ours" * 200
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    node = os.uname().nodename
    left, foreign = tmp_path / f".a.json.{node}.{killed.pid}.tmp", tmp_path / f".a.json.elsewhere.{killed.pid}.tmp"
    others = [foreign, tmp_path / f"{killed.pid}.tmp", tmp_path / f".b.json.{node}.{killed.pid}.tmp"]
    running = tmp_path / f".a.json.{node}.{os.getppid()}.tmp"
    for file in (left, running, *others):
        file.write_text("part")
        os.utime(file, (0, 0))
    young = tmp_path / f".a.json.{node}.{killed.pid + 1}.tmp"
    young.write_text("part")
    others.append(young)
    write_json(tmp_path / "a.json", {"a": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": null\n}\n'
    assert {*tmp_path.iterdir()} == {tmp_path / "a.json", running, *others}


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(b"before")

    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"No space left on device: .*part could not be written, and is as it was"
    ) as raised:
        write_whole(path, full)
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_json_that_says_the_same_already_is_left_alone(tmp_path):
    """Other processes may be reading it."""
    write_json(tmp_path / "config.json", {"a": 1})
    before = (tmp_path / "config.json").stat()
    write_json(tmp_path / "config.json", {"a": 1})
    assert (tmp_path / "config.json").stat().st_ino == before.st_ino
    write_json(tmp_path / "config.json", {"a": 2})
    assert (tmp_path / "config.json").read_text() == '{\n  "a": 2\n}\n'
