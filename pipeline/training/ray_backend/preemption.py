"""Stop requests in a Ray cluster: from the driver to rank 0, leaving nodes to all ranks."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.distributed import ray_private_api
from pipeline.distributed.world import World
from pipeline.training.stop import Request, StopSignal

if TYPE_CHECKING:
    from ray.train import PreemptionInfo

FINAL_SAVE_SECONDS = 15.0  # before a node leaves: save again what was done since the first save
LOOK_SECONDS = 1.0  # between two looks for requests of the driver
_NAMESPACE = b"guidance-stop"


@contextlib.contextmanager
def relay_stop_signal(stop: StopSignal, driver: str) -> Iterator[None]:
    """Relay a stop to the workers through the cluster's key-value store, inside the block.

    ``driver`` is this one's key (``RunRecord.driver``). The process must be connected to Ray. A
    signal handler may do very little, so a thread waits for the signal and writes the key.
    """
    key, ended = driver.encode(), threading.Event()
    ray_private_api.kv_delete(key, _NAMESPACE)  # of an earlier driver

    def relay() -> None:
        while not ended.is_set():
            if stop.received.wait(0.5):
                ray_private_api.kv_put(key, stop.reason.encode(), _NAMESPACE)
                return

    stop.install()  # connecting to Ray has replaced the handler
    thread = threading.Thread(target=relay, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5.0)
        with contextlib.suppress(Exception):  # the cluster may be gone, and the key with it
            ray_private_api.kv_delete(key, _NAMESPACE)


def stop_requested(driver: str) -> str | None:
    """Return why a driver (``RunRecord.driver``) stops its training, or None."""
    reason = ray_private_api.kv_get(driver.encode(), _NAMESPACE)
    return reason.decode() if reason is not None else None


def preemption_watch_enabled() -> bool:
    """Return whether Ray Train watches for leaving nodes; not on a Ray that this project starts."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") not in ("0", "false")


class PreemptionWatcher:
    """Requests a checkpoint when a node with workers is about to leave, and one just before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._announced: set[str] = set()
        self._saved_last: set[str] = set()

    def pending(self) -> bool:
        """Return whether this rank has received a notice that `poll` turns into a request."""
        info = ray_private_api.received_preemption_info()
        return info is not None and any(self._changes(info, _seconds_left(info)))

    def poll(self) -> Request | None:
        """Return a request to save, the same on every rank; every rank calls it."""
        import ray.train

        info = ray.train.get_preemption_info()
        if info is None:
            return None
        left = self._world.broadcast(_seconds_left(info))  # clocks differ
        first, last = self._changes(info, left)
        if not first and not last:
            return None
        nodes = set(info.preempted_node_ids)
        self._announced |= nodes
        if last:
            self._saved_last |= nodes
        when = f" in {left:.0f} s" if left < float("inf") else ""
        return Request(f"the node of ranks {info.preempted_ranks} leaves{when}", stop=False)

    def _changes(self, info: PreemptionInfo, left: float) -> tuple[bool, bool]:
        """Return whether a node was not announced before, and whether it is time to save last."""
        nodes = set(info.preempted_node_ids)
        last = left < FINAL_SAVE_SECONDS and not nodes <= self._saved_last
        return not nodes <= self._announced, last


def _seconds_left(info: PreemptionInfo) -> float:
    """Return the time to the earliest deadline, by the clock of this node."""
    return info.deadline_ms / 1000 - time.time() if info.deadline_ms else float("inf")


class DriverRequests:
    """Looks for requests of the driver in a thread, since the key-value store may be slow."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look, self.pending = look, False  # as last seen
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="requests", daemon=True).start()

    def close(self) -> None:
        """End the thread, without waiting for it."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # Ray reports a lost connection to its head
                self.pending = self._look()
