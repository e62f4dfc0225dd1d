"""Stop requests in a Ray cluster: SIGTERM from the driver to rank 0, leaving nodes to all ranks."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from pipeline.distributed import ray_private_api
from pipeline.distributed.world import World
from pipeline.training.stop import Request, StopSignal

FINAL_SAVE_SECONDS = 15.0  # before a node leaves: save again what was done since the first save
_NAMESPACE = b"guidance-stop"


@contextlib.contextmanager
def relay_stop_signal(stop: StopSignal, run_uri: str) -> Iterator[None]:
    """Relay SIGTERM to the workers through the cluster's key-value store, inside the block.

    The process must be connected to Ray. A signal handler may do very little, so a thread waits for
    the signal and writes the key.
    """
    key, ended = run_uri.encode(), threading.Event()
    ray_private_api.kv_delete(key, _NAMESPACE)  # of an earlier driver

    def relay() -> None:
        while not ended.is_set():
            if stop.received.wait(0.5):
                ray_private_api.kv_put(key, b"1", _NAMESPACE)
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


def stop_requested(run_uri: str) -> bool:
    """Return whether the driver of this run has received SIGTERM."""
    return ray_private_api.kv_get(run_uri.encode(), _NAMESPACE) is not None


def preemption_watch_enabled() -> bool:
    """Return whether Ray Train watches for leaving nodes; not on a Ray that this project starts."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") not in ("0", "false")


class PreemptionWatcher:
    """Requests a checkpoint when a node with workers is about to leave, and one just before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._announced: set[str] = set()
        self._saved_last: set[str] = set()

    def poll(self) -> Request | None:
        """Return a request to save, the same on every rank; every rank calls it."""
        import ray.train

        info = ray.train.get_preemption_info()
        if info is None:
            return None
        nodes = set(info.preempted_node_ids)
        left = info.deadline_ms / 1000 - time.time() if info.deadline_ms else float("inf")
        left = self._world.broadcast(left)  # clocks differ
        last = left < FINAL_SAVE_SECONDS and not nodes <= self._saved_last
        if nodes <= self._announced and not last:
            return None
        self._announced |= nodes
        if last:
            self._saved_last |= nodes
        when = f" in {left:.0f} s" if left < float("inf") else ""
        return Request(f"the node of ranks {info.preempted_ranks} leaves{when}", stop=False)
