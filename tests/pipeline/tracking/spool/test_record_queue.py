"""The spool by itself: in order, shrinking, bounded, and never blocked by what it cannot read."""

import os
import platform
import subprocess
import sys

from pipeline.tracking.spool.record_queue import Spool
from tests.conftest import ROOT

NODE = platform.node()


def test_the_spool_is_first_in_first_out_and_shrinks(tmp_path):
    spool = Spool(tmp_path / "spool")
    for number in range(10):
        spool.append({"n": number})
    assert spool.peek(4) == [{"n": n} for n in range(4)]
    spool.commit(2)
    assert spool.peek(100) == [{"n": n} for n in range(2, 10)]
    spool.commit(8)
    assert [path.stat().st_size for path in (tmp_path / "spool").iterdir()] == [0]
    spool.append({"n": 10})
    assert spool.peek(100) == [{"n": 10}]
    assert not spool.close()
    assert Spool(tmp_path / "spool").peek(100) == [{"n": 10}]


def test_records_longer_than_a_chunk_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.spool.record_queue._CHUNK", 16)
    spool = Spool(tmp_path)
    spool.append({"text": "x" * 100})
    spool.append({"text": "y"})
    assert [record["text"][0] for record in spool.peek(1) + spool.peek(2)[1:]] == ["x", "y"]


def test_a_killed_process_leaves_its_records_and_a_living_one_keeps_them(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pipeline.tracking.spool.record_queue import Spool\n"
        "spool = Spool(Path(sys.argv[1])); spool.append({'n': 1}); print('ready', flush=True)\n"
        "sys.stdin.read(1); os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        assert Spool(tmp_path).peek(10) == []
        process.communicate(b"x")
    leftover = next(path for path in tmp_path.glob("*.jsonl") if path.stat().st_size)
    with open(leftover, "ab") as file:
        file.write(b'{"n": 2, "cut')
    spool = Spool(tmp_path)
    spool.append({"n": 3})
    assert spool.peek(10) == [{"n": 1}]
    spool.commit(1)
    assert spool.peek(10) == [{"n": 3}]


def test_a_full_spool_counts_what_it_drops(tmp_path):
    spool = Spool(tmp_path, max_bytes=30)
    for number in range(10):
        spool.append({"n": number})
    assert len(spool.peek(10)) == 3
    assert spool.dropped == 7


def test_an_unwritable_folder_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    spool = Spool(blocked / "spool")
    spool.append({"n": 1})
    assert spool.peek(1) == [{"n": 1}]
    spool.commit(1)
    assert spool.close()


def test_a_spool_in_memory_goes_on_after_everything_was_sent(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked / "cache"))
    spool = Spool(blocked / "spool")
    for number in range(5):
        spool.append({"n": number})
        assert spool.peek(9) == [{"n": number}]
        spool.commit(1)
    spool.append({"n": 5})
    assert not spool.close() and spool.dropped == 1


def test_what_cannot_be_read_does_not_end_a_spool(tmp_path):
    killed = Spool(tmp_path)
    killed.append({"n": 1})
    os.write(killed._files[-1].descriptor, b"\x00{]\n")
    killed.append({"n": 2})
    spool = Spool(tmp_path / "elsewhere")
    spool._files[:0] = [killed._files[-1]]
    assert spool.peek(1) == [{"n": 1}]
    spool.commit(1)
    assert spool.peek(1) == [{"n": 2}]
    spool.commit(1)
    assert spool.peek(1) == [] and spool.close()
