"""The environment of a worker: its rank, its checkpoint store, and requests from outside.

The training loop depends on `Session` only. Ray Train's is in `ray_backend.launch`; the one without
Ray is below.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch.distributed as dist

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import RayConfig
from pipeline.distributed.world import World, world_from_environment
from pipeline.errors import UserError
from pipeline.storage.redact import mask
from pipeline.training.run_record import RunRecord
from pipeline.training.stop import Request, StopSignal


class Session(Protocol):
    """What the training loop needs from the system that launched it."""

    world: World
    store: CheckpointStore
    may_end_at_report: bool
    """Whether a report may end the training, as in a sweep."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report metrics to the launcher. Every rank calls it equally often."""

    def request_pending(self) -> bool:
        """Return whether `poll_request` would return a request, on rank 0, without waiting."""

    def poll_request(self) -> Request | None:
        """Return a pending request, the same on every rank. Every rank calls it."""


class LocalSession:
    """A single process, or one of those that torchrun started."""

    may_end_at_report = False

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


def check_same_run(record: RunRecord, world: World) -> None:
    """Raise UserError on every rank if another machine has the run, but that of rank 0 does not.

    Only rank 0 needs the storage. Where machines do not share it, rank 0 on another one than
    before would not find the checkpoints, and start from scratch.
    """

    def known() -> bool:
        with contextlib.suppress(OSError, UserError):  # rank 0 reads it again, and reports errors
            return record.read() is not None
        return False

    found = world.gather((known(), platform.node())) or []

    def compare() -> None:
        others = sorted({machine for has_run, machine in found if has_run})
        if others and not found[0][0]:
            raise UserError(
                f"run {record.name!r} is in {mask(record.storage)!r} on {', '.join(others)}, but "
                f"not on {found[0][1]}, where rank 0 runs; start rank 0 there, give a "
                "--ray.storage that all machines share, or choose another --run name"
            )

    world.on_main(compare)
