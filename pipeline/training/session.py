"""The environment of a worker: its rank, its checkpoint store, and requests from outside.

The training loop depends on `Session` only. Ray Train's is in `ray_backend.launch`; the one without
Ray is below.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch.distributed as dist

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import RayConfig
from pipeline.distributed.world import World, world_from_environment
from pipeline.errors import UserError
from pipeline.training.stop import Request, StopSignal


class Session(Protocol):
    """What the training loop needs from the system that launched it."""

    world: World
    store: CheckpointStore

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report metrics to the launcher. Every rank calls it equally often."""

    def request_pending(self) -> bool:
        """Return whether `poll_request` would return a request, on rank 0, without waiting."""

    def poll_request(self) -> Request | None:
        """Return a pending request, the same on every rank. Every rank calls it."""


class LocalSession:
    """A single process, or one of those that torchrun started."""

    def __init__(
        self, world: World, store: CheckpointStore, stop: StopSignal | None = None
    ) -> None:
        self.world, self.store, self._stop = world, store, stop

    def report(self, metrics: Mapping[str, float]) -> None:
        """Do nothing: there is no launcher to report to."""

    def request_pending(self) -> bool:
        """Return whether this process has received SIGTERM."""
        return self._stop is not None and self._stop.received.is_set()

    def poll_request(self) -> Request | None:
        """Return a request to stop once rank 0 has received SIGTERM or lost the run."""
        stop = self._stop
        reason = self.world.broadcast(stop.reason if stop and self.request_pending() else None)
        return Request(reason, stop=True) if reason else None


@contextlib.contextmanager
def launched_world(config: RayConfig) -> Iterator[World]:
    """Yield the world that torchrun started, with its process group, or else a single process.

    Where Ray starts the workers, this process is their driver and therefore single too. Raises
    UserError if both would start workers.
    """
    if config.enabled:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("torchrun starts the workers itself; add --ray.enabled false")
        yield World()
        return
    world, owns_group = world_from_environment(config.gpu, config.collective_timeout)
    try:
        yield world
    finally:
        if owns_group:
            dist.destroy_process_group()
