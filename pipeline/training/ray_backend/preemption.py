"""How wishes travel through a Ray cluster: from the driver to rank 0, from a node's end to all."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from pipeline.distributed.world import World
from pipeline.training.stop import Request, StopSignal

LAST_CALL_SECONDS = 15.0  # before a node goes, when what was done since the first save is saved too
_NAMESPACE = b"guidance-stop"


@contextlib.contextmanager
def relayed(stop: StopSignal, run_uri: str) -> Iterator[None]:
    """Inside the block, which is connected to Ray, SIGTERM becomes a note in the cluster's store.

    A signal handler must do next to nothing, so a thread waits for the signal and writes.
    """
    from ray.experimental import internal_kv

    key, ended = run_uri.encode(), threading.Event()
    internal_kv._internal_kv_del(key, namespace=_NAMESPACE)  # an earlier driver's

    def relay() -> None:
        while not ended.is_set():
            if stop.wanted.wait(0.5):
                internal_kv._internal_kv_put(key, b"1", overwrite=True, namespace=_NAMESPACE)
                return

    stop.install()  # connecting to Ray has taken the signal
    thread = threading.Thread(target=relay, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5.0)
        with contextlib.suppress(Exception):  # a cluster that is gone holds no note
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def stop_wanted(run_uri: str) -> bool:
    """Whether the driver of this run has been asked to stop."""
    from ray.experimental import internal_kv

    return internal_kv._internal_kv_get(run_uri.encode(), namespace=_NAMESPACE) is not None


def watches_nodes() -> bool:
    """Whether Ray Train watches for nodes that are to go; it does not on a Ray started here."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") not in ("0", "false")


class LeavingNodes:
    """Asks for a checkpoint when a node with workers is to go, and once more just before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._announced: set[str] = set()
        self._last_call: set[str] = set()

    def look(self) -> Request | None:
        """The same on every rank; every rank calls it."""
        import ray.train

        info = ray.train.get_preemption_info()
        if info is None:
            return None
        nodes = set(info.preempted_node_ids)
        left = info.deadline_ms / 1000 - time.time() if info.deadline_ms else float("inf")
        left = self._world.share(left)  # clocks differ
        last = left < LAST_CALL_SECONDS and not nodes <= self._last_call
        if nodes <= self._announced and not last:
            return None
        self._announced |= nodes
        if last:
            self._last_call |= nodes
        when = f" in {left:.0f} s" if left < float("inf") else ""
        return Request(f"a node with the ranks {info.preempted_ranks} goes{when}", stop=False)
