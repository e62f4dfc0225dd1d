"""Run a function on several ranks, each in its own process, with gloo."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed.world import World, world_from_environment
from tests.ports import free_port

RANKS = 3
_FORK = multiprocessing.get_context("fork")


def on_each_rank(work: Callable[[World], Any]) -> list[Any]:
    """Run ``work`` on three ranks; return their results, which must be small, in rank order."""
    port, results = free_port(), _FORK.SimpleQueue()

    def rank_main(rank: int) -> None:
        torch.set_num_threads(1)  # those of the parent do not exist here
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("RANK", rank), ("WORLD_SIZE", RANKS), ("MASTER_PORT", port)):
                patch.setenv(name, str(value))
            patch.setenv("MASTER_ADDR", "127.0.0.1")
            world, started = world_from_environment(gpu=False, timeout=60)
            assert started and (world.rank, world.size) == (rank, RANKS)
            try:
                results.put((rank, work(world)))
            finally:
                dist.destroy_process_group()

    processes = [_FORK.Process(target=rank_main, args=(rank,)) for rank in range(RANKS)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    return [result for _, result in sorted(results.get() for _ in range(RANKS))]
