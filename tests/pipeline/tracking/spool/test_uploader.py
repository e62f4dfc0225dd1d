"""Files that a server rejects, delays or cannot take yet do not hold up points, tags and status."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.tracking import Tracker, create_run, finish_run, sync
from pipeline.tracking.spool.record_queue import RecordQueue
from pipeline.tracking.spool.records import FileRecord
from tests.artifact_server import LIMIT, ArtifactServer
from tests.stores import points


@pytest.fixture
def server() -> Iterator[ArtifactServer]:
    with ArtifactServer() as server:
        yield server


@pytest.fixture
def run_id(client, server) -> str:
    name = f"uploads {server.server_port}"
    root = f"http://127.0.0.1:{server.server_port}/root"
    experiment = client.create_experiment(name, artifact_location=root)
    return client.create_run(experiment).info.run_id


def test_file_that_is_too_large_is_set_aside_and_everything_else_arrives(
    uri, client, run_id, tmp_path, server, caplog, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spool = tmp_path / "runs" / "one" / "tracking"
    tracker = Tracker(uri, run_id, spool, system_metrics=False)
    for step in range(5):
        tracker.log_text("x" * (LIMIT + 1 + step), "pictures/val.jpg")
        tracker.log_metrics({"loss": 1.0}, step)
        if step == 2:
            time.sleep(1.5)  # the first ones are rejected
    tracker.set_tag("state", "good")
    tracker.log_text("small", "pictures/small.txt")
    assert not tracker.close(20)
    assert server.stored == {"pictures/small.txt": b"small"}
    assert points(client, run_id, "loss") == [(step, 1.0) for step in range(5)]
    assert client.get_run(run_id).data.tags["state"] == "good"
    assert caplog.text.count("was rejected") == 1
    assert "artifact pictures/val.jpg was rejected: 413 Client Error" in caplog.text
    kept = spool / "rejected" / "pictures" / "val.jpg"
    assert kept.read_text() == "x" * (LIMIT + 5)  # the last one replaces the others

    assert finish_run(uri, run_id, spool, "FINISHED")  # leaves it alone
    assert client.get_run(run_id).info.status == "FINISHED"
    (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
    assert not sent.complete
    assert kept.exists()
    server.limit = 10 * LIMIT
    (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
    assert sent.complete
    assert len(server.stored["pictures/val.jpg"]) == LIMIT + 5
    assert not spool.exists()


def test_run_is_created_without_the_files_that_are_rejected(
    uri, client, tmp_path, server, caplog, run_id
):
    spool, config = tmp_path / "runs" / "one" / "tracking", Config()
    name = client.get_experiment(client.get_run(run_id).info.experiment_id).name
    config = config.replace({"tracking.experiment": name})
    server.status["packages.txt"], server.limit = 413, 10**6
    created = create_run(uri, config, "one", spool=spool)
    assert set(server.stored) == {"config.yaml", "environment/machine.json"} | {
        path for path in server.stored if path == "environment/uncommitted.diff"
    }
    assert client.get_run(created).info.status == "RUNNING"
    assert "artifact environment/packages.txt was rejected" in caplog.text
    server.status.clear()
    assert sync(tmp_path / "runs", uri, lambda: uri)[0].complete
    assert "torch==" in server.stored["environment/packages.txt"].decode()


def test_points_and_status_do_not_wait_for_a_slow_upload(uri, client, run_id, tmp_path, server):
    server.delay = 4.0
    tracker = Tracker(uri, run_id, tmp_path / "spool", system_metrics=False)
    tracker.log_text("slow", "slow.txt")
    deadline = time.monotonic() + 10
    while not server.requests and time.monotonic() < deadline:
        time.sleep(0.02)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.set_status("FINISHED")
    while client.get_run(run_id).info.status != "FINISHED" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert server.stored == {}
    assert tracker.close(20)
    assert server.stored == {"slow.txt": b"slow"}


def test_upload_takes_longer_than_the_timeout_of_other_requests(
    uri, run_id, tmp_path, server, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.delay = 2.5
    tracker = Tracker(uri, run_id, tmp_path / "spool", system_metrics=False)
    tracker.log_text("slow", "slow.txt")
    assert tracker.close(20)
    assert server.requests == ["slow.txt"]


@pytest.mark.parametrize("status", [403, 404])
def test_repeated_client_error_sets_a_file_aside(
    uri, run_id, tmp_path, server, status, monkeypatch
):
    monkeypatch.setattr("pipeline.tracking.spool.sending_thread._BATCH_SECONDS", 0.05)
    server.status["bad.txt"] = status
    tracker = Tracker(uri, run_id, tmp_path / "spool", system_metrics=False)
    tracker.log_text("bad", "bad.txt")
    tracker.log_text("good", "good.txt")
    assert not tracker.close(20)
    assert server.stored == {"good.txt": b"good"}
    assert server.requests.count("bad.txt") == 5
    assert (tmp_path / "spool" / "rejected" / "bad.txt").read_text() == "bad"


def test_file_that_meets_an_outage_stays_queued_behind_the_others(
    uri, run_id, tmp_path, server, monkeypatch, caplog
):
    monkeypatch.setattr("pipeline.tracking.spool.sending_thread._BATCH_SECONDS", 0.05)
    server.status["bad.txt"] = 503
    spool = tmp_path / "spool"
    tracker = Tracker(uri, run_id, spool, system_metrics=False)
    tracker.log_text("bad", "bad.txt")
    tracker.log_text("good", "good.txt")
    assert not tracker.close(2)
    assert server.stored == {"good.txt": b"good"}
    assert server.requests.count("bad.txt") > 5
    assert not (spool / "rejected").exists()
    assert "is queued in" in caplog.text
    server.status.clear()
    with Tracker(uri, run_id, spool, system_metrics=False):
        pass
    assert server.stored["bad.txt"] == b"bad"
    assert "no longer exists" not in caplog.text
    assert not spool.exists()


def test_files_among_records_of_an_old_spool_are_uploaded(uri, client, run_id, tmp_path, server):
    spool = tmp_path / "spool"
    old = RecordQueue(spool)  # former versions kept all records in one queue
    path = old.store_file("large.txt", lambda path: Path(path).write_text("x" * 2 * LIMIT))
    old.append(FileRecord(time=1, path=str(path), folder=""))
    path = old.store_file("small.txt", lambda path: Path(path).write_text("x"))
    old.append(FileRecord(time=1, path=str(path), folder="texts"))
    assert not old.close()
    assert not finish_run(uri, run_id, spool, "FINISHED")
    assert client.get_run(run_id).info.status == "FINISHED"
    assert server.stored == {"texts/small.txt": b"x"}
    assert (spool / "rejected" / "large.txt").exists()
