"""Processes that write to one sqlite file take turns."""

import threading
from pathlib import Path

from pipeline.config import Config
from pipeline.tracking import connect, create_run
from pipeline.tracking.client import exclusive_writes
from pipeline.tracking.spool.records import MetricPoints
from pipeline.tracking.spool.sender import Sender
from tests.stores import new_store


def test_writer_waits_for_another_one(tmp_path: Path) -> None:
    uri = new_store(tmp_path / "store")
    run_id, client = create_run(uri, Config(), "one"), connect(uri)
    sender = Sender(uri, run_id, tmp_path, print)
    sender.client()
    points = [MetricPoints(time=0, step=0, metrics={"train/loss": 1.0})]
    thread = threading.Thread(target=sender.send, args=(points,))
    with exclusive_writes(uri):  # another process, for instance
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and not client.get_metric_history(run_id, "train/loss")
    thread.join(60.0)
    assert len(client.get_metric_history(run_id, "train/loss")) == 1


def test_other_stores_are_written_at_once() -> None:
    with exclusive_writes("http://server:5000"), exclusive_writes("http://server:5000"):
        pass
