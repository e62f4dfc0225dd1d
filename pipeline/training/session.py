"""What a worker's surroundings give it: its place among the ranks, and where checkpoints are.

The training loop knows only `Session`. Ray Train's is in `ray_train`; here is the one without Ray.
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
    """What a worker asks of its surroundings."""

    world: World
    store: CheckpointStore

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell the launcher how well it goes. Every rank calls it equally often."""

    def asked(self) -> Request | None:
        """What the surroundings want now, the same on every rank. Every rank calls it."""


class LocalSession:
    """This process alone, or one of those that torchrun started."""

    def __init__(
        self, world: World, store: CheckpointStore, stop: StopSignal | None = None
    ) -> None:
        self.world, self.store, self._stop = world, store, stop

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody asks."""

    def asked(self) -> Request | None:
        """To stop, after rank 0 has received SIGTERM."""
        wanted = self._stop is not None and self._stop.wanted.is_set()
        return Request("stopped by SIGTERM", stop=True) if self.world.share(wanted) else None


@contextlib.contextmanager
def launched_world(config: RayConfig) -> Iterator[World]:
    """The ranks that torchrun started, in a process group for the block; else a single one.

    Where Ray starts the workers, this process is their driver: a single one too. Raises UserError
    if both would start them.
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
