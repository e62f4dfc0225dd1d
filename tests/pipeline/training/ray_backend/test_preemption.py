"""Requests as rank 0 sees them between two polls, without a collective."""

import threading
import time
from collections.abc import Iterator

import pytest
from ray.train import PreemptionInfo

from pipeline.distributed import ray_private_api
from pipeline.distributed.world import World
from pipeline.training.ray_backend.preemption import (
    FINAL_SAVE_SECONDS,
    DriverRequests,
    PreemptionWatcher,
)


def receive(monkeypatch: pytest.MonkeyPatch, seconds: float, *nodes: str) -> None:
    """Receive a notice of leaving nodes with that deadline, as from Ray Train's controller."""
    deadline = int(1000 * (time.time() + seconds))
    ranks = {node: [rank] for rank, node in enumerate(nodes)}
    notice = PreemptionInfo(deadline_ms=deadline, preempted_node_to_ranks=ranks)
    monkeypatch.setattr(ray_private_api, "received_preemption_info", lambda: notice)
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: notice)


def test_notice_is_pending_until_it_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private_api, "received_preemption_info", lambda: None)
    watcher = PreemptionWatcher(World())
    assert not watcher.pending()
    for seconds, nodes in (
        (100.0, ("a",)),
        (90.0, ("a", "b")),  # another node
        (FINAL_SAVE_SECONDS - 1.0, ("a", "b")),  # shortly before they leave
    ):
        receive(monkeypatch, seconds, *nodes)
        assert watcher.pending() and watcher.pending()
        request = watcher.poll()
        assert request is not None and not request.stop
        assert str(list(range(len(nodes)))) in request.reason
        assert not watcher.pending() and watcher.poll() is None


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.ray_backend.preemption.LOOK_SECONDS", 0.01)


@pytest.mark.usefixtures("_fast")
def test_requests_of_the_driver_are_seen_after_an_outage() -> None:
    looks: Iterator[bool] = iter([False, True, False])
    outages = iter([True, False])

    def look() -> bool:
        if next(outages, False):
            raise ConnectionError("no head node")
        return next(looks, True)

    requests, began = DriverRequests(look), time.monotonic()
    try:
        while not requests.pending:
            assert time.monotonic() < began + 20
            time.sleep(0.002)
    finally:
        requests.close()


@pytest.mark.usefixtures("_fast")
def test_slow_look_does_not_delay_training() -> None:
    begun, responds = threading.Event(), threading.Event()

    def look() -> bool:
        begun.set()
        return responds.wait(60)

    requests = DriverRequests(look)
    assert begun.wait(20)
    assert not requests.pending
    requests.close()
    responds.set()
