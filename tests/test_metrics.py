import contextlib
import errno
import json
import math
import os
import resource
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dino_jax import metrics
from dino_jax.data.whole import write_json
from dino_jax.metrics import MetricsWriter, read_metrics


def write_steps(workdir, steps, resume_step=metrics.NOTHING_RESTORED):
    with MetricsWriter(workdir, resume_step) as writer:
        for step in steps:
            writer.write(step, {"loss/total": 1.0 / (step + 1), "grad_norm/backbone": jnp.float32(step) / 3})
            writer.write_throughput(step, {"throughput/images_per_second": 10.0 * step})


def events(workdir):
    """Reads every event of every file, by the TFRecord framing: length, checksum, content, checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def test_numbers_come_back_bit_for_bit(tmp_path):
    value = np.float32(0.1) + np.float32(1e-8)
    with MetricsWriter(tmp_path) as writer:
        writer.write(3, {"loss/total": value, "a/third": 1 / 3, "a/array": jnp.asarray(value), "a/count": 7})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record == {"step": 3, "loss/total": float(value), "a/third": 1 / 3, "a/array": float(value), "a/count": 7.0}
    assert isinstance(record["step"], int)


def test_non_finite_numbers_are_legal_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"loss/total": math.nan, "loss/ibot": jnp.inf})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 0, "loss/total": None, "loss/ibot": None}
    assert all(math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0][name]) for name in ("loss/total", "loss/ibot"))


def test_lines_are_on_disk_before_the_file_is_closed(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss/total": 2.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss/total": 2.0}]
    writer.close()


def test_resuming_equals_the_uninterrupted_file(tmp_path):
    write_steps(tmp_path / "whole", range(10))
    write_steps(tmp_path / "killed", range(8))
    write_steps(tmp_path / "killed", range(5, 10), resume_step=4)
    for name in ("metrics.jsonl", "throughput.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_restored_starts_an_empty_file(tmp_path):
    write_steps(tmp_path, range(3))
    write_steps(tmp_path, [])
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_kill_at_any_byte_leaves_whole_lines(tmp_path):
    write_steps(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        assert [record["step"] for record in read_metrics(path)] == list(range(complete))
        metrics.JsonLines(path, resume_step=100).close()
        assert path.read_bytes() == b"".join(lines[:complete])


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b'{"step": "one"}\n', b"[1]\n", b'{"loss/total": 1.0}\n'])
def test_a_damaged_line_inside_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is damaged"):
        read_metrics(path)
    with pytest.raises(ValueError, match="line 2"):
        MetricsWriter(tmp_path, resume_step=2)


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_steps(tmp_path / "run", range(2))
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def file_size_limit(size: int):
    """Limits the size of any file this process writes, which fails in the same way as a full disk.

    Only inside the block: pytest's own output may go to a file that is longer.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_clear_error_and_keeps_earlier_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = metrics.JsonLines(path, metrics.NOTHING_RESTORED)
    sink.append(1, {"loss/total": 1.0})
    before = path.read_bytes()
    message = r"cannot log step 2 to .*metrics.jsonl: .*; what was written before is intact"
    with file_size_limit(len(before) + 10), pytest.raises(OSError, match=message):
        sink.append(2, {"loss/total": 2.0})
    assert path.read_bytes() == before
    sink.append(2, {"loss/total": 2.0})
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


def test_a_full_disk_stops_tensorboard_without_hanging(tmp_path):
    board = metrics.TensorBoard(tmp_path, metrics.NOTHING_RESTORED)
    with file_size_limit(500), pytest.raises(OSError, match="cannot log step") as caught:
        for step in range(1000):
            board.append(step, {"loss/total": 1.0})
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    board.close()


def test_tensorboard_gets_all_scalars_and_hides_steps_after_the_restored_one(tmp_path):
    write_steps(tmp_path, range(4))
    write_steps(tmp_path, [2], resume_step=1)
    found = events(tmp_path)
    scalars = {(e.step, v.tag): v.simple_value for e in found for v in e.summary.value}
    assert scalars[3, "loss/total"] == 0.25
    assert scalars[3, "throughput/images_per_second"] == 30.0
    assert [e.step for e in found if e.session_log.status == SessionLog.START] == [2]


def test_what_is_written_reaches_the_disk(tmp_path, monkeypatch):
    """Before a file takes its name, and before a checkpoint that follows the records."""
    order, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: order.append("fsync") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda self, target: order.append("replace") or replace(self, target))
    write_json(tmp_path / "results.json", {})
    assert order == ["fsync", "replace"]
    with MetricsWriter(tmp_path, metrics.NOTHING_RESTORED) as writer:
        writer.write(1, {"loss/total": 1.0})
        order.clear()
        writer.sync()
        assert "fsync" in order


def test_write_json_has_no_nan(tmp_path):
    write_json(tmp_path / "results.json", {"loss/total": math.nan, "sizes": (1, -math.inf), "health": {"rank": 2.5}})
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text) == {"loss/total": None, "sizes": [1, None], "health": {"rank": 2.5}}
    assert "NaN" not in text and "Infinity" not in text


def test_write_json_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"knn/trained": 0.5})
    with file_size_limit(5), pytest.raises(OSError, match=r"results\.json could not be written, and is as it was"):
        write_json(path, {"knn/trained": 0.6})
    assert json.loads(path.read_text()) == {"knn/trained": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
