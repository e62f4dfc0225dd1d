"""The tracker: every record arrives exactly once, even if the store fails."""

import logging
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.tracking import Tracker, sync
from pipeline.tracking.spool.records import MetricPoints, StatusRecord, TagRecord, encode
from tests.ports import free_port
from tests.stores import points


def test_tracker_sends_everything_that_is_logged(uri, client, run_id, tmp_path):
    spool = tmp_path / "spool"
    file = tmp_path / "notes.txt"
    file.write_text("a note")
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    with Tracker(uri, run_id, spool, system_metrics=False) as tracker:
        for step in range(1200):
            tracker.log_metrics({"loss": 1 / (step + 1), "val/AP é": step}, step)
        tracker.set_tag("state", "good")
        tracker.log_artifact(file, "notes")
        file.unlink()
        tracker.log_text("more", "notes/more.txt")
        tracker.log_image(np.zeros((4, 5, 3), np.uint8), "pictures/black.png")
        tracker.log_figure(figure, "curve.png")
    assert points(client, run_id, "loss") == [(s, 1 / (s + 1)) for s in range(1200)]
    assert len(points(client, run_id, "val/AP é")) == 1200
    assert client.get_run(run_id).data.tags["state"] == "good"
    names = {
        f.path
        for folder in ("", "notes", "pictures")
        for f in client.list_artifacts(run_id, folder)
    }
    assert {"notes/notes.txt", "notes/more.txt", "pictures/black.png", "curve.png"} <= names
    assert not spool.exists()


def test_tags_and_texts_are_sent_without_secrets(uri, client, run_id, tmp_path):
    with Tracker(uri, run_id, tmp_path / "spool", system_metrics=False) as tracker:
        tracker.set_tag("note", "http://me:S3cret@host")
        tracker.log_text('{"password": "S3cret"}', "a.json")
    assert client.get_run(run_id).data.tags["note"] == "http://me:***@host"
    path = client.download_artifacts(run_id, "a.json", str(tmp_path))
    assert Path(path).read_text() == '{"password": "***"}'


def test_resumed_training_duplicates_no_point(uri, client, run_id, tmp_path):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        for step in range(10):
            tracker.log_metrics({"loss": float(step)}, step)
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        for step in range(6, 15):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.log_metrics({"only later": 1.0}, 3)
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(15)]
    assert points(client, run_id, "only later") == [(3, 1.0)]


def test_records_of_a_checkpoint_replace_no_newer_tag_or_status(uri, client, run_id, tmp_path):
    kept = [
        MetricPoints(time=1, metrics={"loss": 0.5}, step=1),
        TagRecord(time=1, key="device", value="old"),
        TagRecord(time=1, key="best.step", value="1"),
        TagRecord(time=2, key="best.step", value="2"),
        StatusRecord(time=2, status="FAILED"),
    ]
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        tracker.set_tag("device", "new")
        tracker.log_again(encode(record).decode() for record in kept)
    run = client.get_run(run_id)
    assert points(client, run_id, "loss") == [(1, 0.5)]
    assert (run.data.tags["device"], run.data.tags["best.step"]) == ("new", "2")
    assert run.info.status == "RUNNING"


def test_tracker_fills_a_gap_before_the_last_step(uri, client, run_id, tmp_path):
    away = Tracker(f"http://127.0.0.1:{free_port()}", run_id, tmp_path / "a", system_metrics=False)
    for step in range(5, 10):
        away.log_metrics({"loss": float(step)}, step)
    away.close(timeout=0)
    with Tracker(uri, run_id, tmp_path / "b", system_metrics=False) as tracker:
        for step in (*range(7), *range(10, 15)):
            tracker.log_metrics({"loss": float(step)}, step)
    with Tracker(uri, run_id, tmp_path / "a", system_metrics=False):
        pass
    assert sorted(points(client, run_id, "loss")) == [(step, float(step)) for step in range(15)]


def test_tracker_keeps_nan_and_infinity(uri, client, run_id, tmp_path):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        tracker.log_metrics({"loss": float("nan")}, 0)
        tracker.log_metrics({"loss": float("inf")}, 1)
        tracker.log_metrics({"loss": 1.0}, 2)
    values = [value for _, value in points(client, run_id, "loss")]
    assert np.isnan(values[0])
    assert values[1] > 1e300
    assert values[2] == 1.0


def test_absent_server_delays_nothing_and_loses_nothing(uri, client, run_id, tmp_path, caplog):
    away = f"http://127.0.0.1:{free_port()}"
    tracker = Tracker(away, run_id, tmp_path / "spool", system_metrics=False)
    before = time.monotonic()
    for step in range(100):
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.log_text("kept", "kept.txt")
    assert time.monotonic() - before < 1.0
    assert not tracker.close(timeout=0.5)
    assert time.monotonic() - before < 10.0
    assert "is queued in" in caplog.text

    with Tracker(uri, run_id, tmp_path / "spool", system_metrics=False) as tracker:
        tracker.log_metrics({"loss": 100.0}, 100)
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(101)]
    assert [f.path for f in client.list_artifacts(run_id)] == ["kept.txt"]
    assert not (tmp_path / "spool").exists()


def test_batch_whose_response_was_lost_is_not_duplicated(
    uri, client, run_id, tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    send, failures = MlflowClient.log_batch, iter([ConnectionError("response lost")])

    def lose_response(self, *arguments, **options):
        send(self, *arguments, **options)
        for failure in failures:
            raise failure

    monkeypatch.setattr(MlflowClient, "log_batch", lose_response)
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        for step in range(5):
            tracker.log_metrics({"loss": float(step)}, step)
    assert points(client, run_id, "loss") == [(step, float(step)) for step in range(5)]


def test_rejected_metric_does_not_block_others(uri, client, run_id, tmp_path, caplog):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        tracker.log_metrics({"x" * 300: 1.0, "loss": 1.0}, 0)
    assert points(client, run_id, "loss") == [(0, 1.0)]
    assert "rejected metric" in caplog.text


def test_invalid_calls_are_logged_and_never_raise(uri, run_id, tmp_path, caplog):
    with Tracker(uri, run_id, tmp_path, system_metrics=False) as tracker:
        tracker.log_metrics({"loss": "not a number"}, 0)
        tracker.log_artifact(tmp_path / "absent.txt")
        tracker.log_image(np.zeros((2, 2, 7), np.uint8), "odd.png")
    assert caplog.text.count("was not recorded") == 3


def test_sync_leaves_the_spool_of_a_live_process(uri, client, run_id, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "runs" / "one" / "tracking"
    away = f"http://127.0.0.1:{free_port()}"
    with Tracker(uri, run_id, folder, system_metrics=False) as live:
        dead = Tracker(away, run_id, folder, system_metrics=False)
        dead.log_metrics({"loss": 1.0}, 1)
        dead.close(timeout=0)
        (sent,) = sync(tmp_path / "runs", uri, lambda: uri)
        assert sent.complete
        assert points(client, run_id, "loss") == [(1, 1.0)]
        live.log_metrics({"loss": 2.0}, 2)
    assert points(client, run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert sync(tmp_path / "runs", uri, lambda: uri) == []


def test_logging_is_cheap(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    tracker = Tracker(f"http://127.0.0.1:{free_port()}", "0" * 32, tmp_path, system_metrics=False)
    before = time.perf_counter()
    for step in range(1000):
        tracker.log_metrics({"loss": 1.0, "lr": 0.1, "norm": 2.0}, step)
    assert time.perf_counter() - before < 2.0  # at most 2 ms per step on a loaded machine
    tracker.close(timeout=0)
