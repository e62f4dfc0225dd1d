"""Full disks: records still reach a store that responds, and lost records are counted."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.tracking import Tracker, finish_run, sync
from tests.ports import free_port
from tests.stores import points


class FullDisk:
    """Makes writes to some folders, and to open files in them, fail with ENOSPC."""

    def __init__(self, monkeypatch, *folders):
        self.folders, self.full = folders, False
        write, mkdir = os.write, Path.mkdir

        def raise_if_full(path):
            if self.full and any(str(path).startswith(str(folder)) for folder in self.folders):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

        def checked_write(descriptor, data):
            raise_if_full(os.readlink(f"/proc/self/fd/{descriptor}"))
            return write(descriptor, data)

        def checked_mkdir(path, *arguments, **options):
            raise_if_full(path)
            return mkdir(path, *arguments, **options)

        monkeypatch.setattr(os, "write", checked_write)
        monkeypatch.setattr(Path, "mkdir", checked_mkdir)


@pytest.mark.parametrize("cache_too", [False, True])
def test_full_disk_loses_nothing_while_the_store_responds(
    uri, client, run_id, tmp_path, monkeypatch, cache_too, caplog
):
    spool, cache = tmp_path / "spool", tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    disk = FullDisk(monkeypatch, spool, *([cache] if cache_too else []))
    with Tracker(uri, run_id, spool, system_metrics=False) as tracker:
        for step in range(50):
            tracker.log_metrics({"loss": float(step)}, step)
            disk.full = step >= 20
        if not cache_too:
            tracker.log_text("more", "notes/more.txt")
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(50)]
    if not cache_too:
        assert [f.path for f in client.list_artifacts(run_id, "notes")] == ["notes/more.txt"]
    assert finish_run(uri, run_id, spool, "FAILED", "full")  # starts on a full disk
    assert client.get_run(run_id).info.status == "FAILED"
    assert not list(tmp_path.rglob("*.jsonl"))
    assert "were dropped" not in caplog.text


def test_sync_sends_records_of_a_full_disk_from_the_cache(
    uri, client, run_id, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    disk = FullDisk(monkeypatch, tmp_path / "runs")
    disk.full = True
    away = f"http://127.0.0.1:{free_port()}"
    folder = tmp_path / "runs" / "one" / "tracking"
    assert not finish_run(away, run_id, folder, "KILLED", timeout=0)
    (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
    assert sent.complete
    assert client.get_run(run_id).info.status == "KILLED"


def test_records_held_only_in_memory_are_counted_as_dropped(run_id, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    disk = FullDisk(monkeypatch, tmp_path)
    disk.full = True
    away = f"http://127.0.0.1:{free_port()}"
    assert not finish_run(away, run_id, tmp_path / "spool", "KILLED", timeout=0)
    assert "2 records were dropped" in caplog.text
