"""The record queue: ordered, shrinking, bounded, and never blocked by lines it cannot read."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.tracking.spool.record_queue import RecordQueue
from pipeline.tracking.spool.records import (
    FileRecord,
    MetricPoints,
    StatusRecord,
    TagRecord,
    decode,
    encode,
)
from tests.conftest import ROOT


def record(value):
    return TagRecord(time=0, key="n", value=str(value))


def test_queue_is_first_in_first_out_and_shrinks(tmp_path):
    queue = RecordQueue(tmp_path / "spool")
    for number in range(10):
        queue.append(record(number))
    assert queue.peek(4) == [record(n) for n in range(4)]
    queue.commit(2)
    assert queue.peek(100) == [record(n) for n in range(2, 10)]
    queue.commit(8)
    assert [path.stat().st_size for path in (tmp_path / "spool").iterdir()] == [0]
    queue.append(record(10))
    assert queue.peek(100) == [record(10)]
    assert not queue.close()
    assert RecordQueue(tmp_path / "spool").peek(100) == [record(10)]


def test_queue_reads_records_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.spool.record_queue._CHUNK_BYTES", 16)
    queue = RecordQueue(tmp_path)
    queue.append(record("x" * 100))
    queue.append(record("y"))
    assert [item.value[0] for item in queue.peek(1) + queue.peek(2)[1:]] == ["x", "y"]


def test_queue_takes_over_records_of_a_killed_process_but_not_of_a_live_one(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pipeline.tracking.spool.record_queue import RecordQueue\n"
        "from pipeline.tracking.spool.records import TagRecord\n"
        "queue = RecordQueue(Path(sys.argv[1]))\n"
        "queue.append(TagRecord(time=0, key='n', value='1')); print('ready', flush=True)\n"
        "sys.stdin.read(1); os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        assert RecordQueue(tmp_path).peek(10) == []
        process.communicate(b"x")
    leftover = next(path for path in tmp_path.glob("*.jsonl") if path.stat().st_size)
    with open(leftover, "ab") as file:
        file.write(b'{"type": "tag", "key": "n", "cut')
    queue = RecordQueue(tmp_path)
    queue.append(record(3))
    assert queue.peek(10) == [record(1)]
    queue.commit(1)
    assert queue.peek(10) == [record(3)]


def test_full_queue_counts_dropped_records(tmp_path):
    queue = RecordQueue(tmp_path, max_bytes=3 * len(encode(record(0))) + 3)
    for number in range(10):
        queue.append(record(number))
    assert len(queue.peek(10)) == 3
    assert queue.dropped == 7


def test_queue_uses_the_cache_if_the_folder_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    queue = RecordQueue(blocked / "spool")
    queue.append(record(1))
    assert queue.peek(1) == [record(1)]
    queue.commit(1)
    assert queue.close()


def test_queue_in_memory_continues_after_all_records_were_sent(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked / "cache"))
    queue = RecordQueue(blocked / "spool")
    for number in range(5):
        queue.append(record(number))
        assert queue.peek(9) == [record(number)]
        queue.commit(1)
    queue.append(record(5))
    assert not queue.close() and queue.dropped == 1


def test_queue_leaves_memory_when_a_disk_has_space_again(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked / "cache"))
    queue = RecordQueue(blocked / "spool")
    for number in range(4):
        queue.append(record(number))
    assert queue.peek(1) == [record(0)]
    queue.commit(1)
    assert queue.in_memory() == [encode(record(number)) for number in (1, 2, 3)]
    blocked.unlink()
    queue.append(record(4))  # no look for space yet
    monkeypatch.setattr("time.monotonic", lambda: queue._tried + 6)
    queue.append(record(5))
    assert queue.in_memory() == [encode(record(number)) for number in (1, 2, 3, 4)]
    assert list(blocked.rglob("*.jsonl"))
    sent = []
    while records := queue.peek(3):
        sent += records
        queue.commit(len(records))
    assert sent == [record(number) for number in (1, 2, 3, 4, 5)]
    assert queue.in_memory() == [] and queue.close() and not queue.dropped


@pytest.mark.parametrize(
    "garbage", [b"\x00{]\n", b"[1]\n", b'{"n": 1}\n', b'{"type": 1}\n', b'{"type": "tag"}\n']
)
def test_queue_skips_lines_that_are_not_records(tmp_path, garbage):
    killed = RecordQueue(tmp_path)
    killed.append(record(1))
    os.write(killed._files[-1].descriptor, garbage)
    killed.append(record(2))
    queue = RecordQueue(tmp_path / "elsewhere")
    queue._files[:0] = [killed._files[-1]]
    assert queue.peek(1) == [record(1)]
    queue.commit(1)
    assert queue.peek(1) == [record(2)]
    queue.commit(1)
    assert queue.peek(1) == [] and queue.close()


def test_queue_leaves_files_with_records_of_a_newer_version(tmp_path, caplog):
    newer = tmp_path / "00000000000000000001-1.jsonl"
    line = b'{"type": "trace", "time": 1}\n'
    newer.write_bytes(encode(record(1)) + line + encode(record(2)))
    queue = RecordQueue(tmp_path)
    queue.append(record(3))
    assert queue.peek(9) == [record(1)]
    queue.commit(1)
    assert queue.peek(9) == [record(3)]
    queue.commit(1)
    assert f"{newer}: unknown type of record 'trace'" in caplog.text
    assert "newer version" in caplog.text
    assert not queue.take_over_abandoned()
    assert not queue.close()
    assert newer.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"time": 1795731499733, "metrics": {"loss": 1.0}, "step": 1}',
            MetricPoints(time=1795731499733, metrics={"loss": 1.0}, step=1),
        ),
        (
            '{"time": 1795731499733, "metrics": {"system/n/cpu": 1.5}, "step": null}',
            MetricPoints(time=1795731499733, metrics={"system/n/cpu": 1.5}, step=None),
        ),
        (
            '{"time": 1795731499733, "metrics": {"y": Infinity, "z": -Infinity}, "step": 1}',
            MetricPoints(
                time=1795731499733, metrics={"y": float("inf"), "z": float("-inf")}, step=1
            ),
        ),
        (
            '{"time": 1795731499733, "tag": ["state", "good"]}',
            TagRecord(time=1795731499733, key="state", value="good"),
        ),
        (
            '{"time": 1795731499733, "file": "/spool/files/c196/more.txt", "folder": "notes"}',
            FileRecord(time=1795731499733, path="/spool/files/c196/more.txt", folder="notes"),
        ),
        (
            '{"time": 1795731499737, "status": "FAILED"}',
            StatusRecord(time=1795731499737, status="FAILED"),
        ),
    ],
)
def test_records_of_the_first_format_are_read(line, expected):
    assert decode(line.encode()) == expected
    assert decode(encode(expected)) == expected


def test_nan_survives_in_both_formats():
    old = decode(b'{"time": 1, "metrics": {"x": NaN}, "step": 1}')
    new = decode(encode(old))
    assert all(item.metrics["x"] != item.metrics["x"] for item in (old, new))
    assert json.loads(encode(new))["type"] == "metrics"
