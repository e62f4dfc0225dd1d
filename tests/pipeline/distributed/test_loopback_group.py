"""Process groups on one machine do not listen on the network."""

import ipaddress
import multiprocessing
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed.loopback_group import join_group, listen_as_rank_0
from tests.jobs.head import listening_addresses

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_meet_on_loopback(size: int) -> None:
    results: Any = FORK.SimpleQueue()
    # Each rank hands the port on before it listens on others.
    ports: Any = FORK.SimpleQueue()

    def rank_main(rank: int) -> None:
        if rank == 0:
            port = listen_as_rank_0()
            for _ in range(size - 1):
                ports.put(port)
        else:
            port = ports.get()
        join_group("gloo", rank, size, port, 60)
        value = torch.tensor([rank + 1.0])
        dist.all_reduce(value)
        results.put((value.item(), listening_addresses(os.getpid())))
        dist.barrier()
        dist.destroy_process_group()

    processes = [FORK.Process(target=rank_main, args=(rank,)) for rank in range(size)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    sums, found = zip(*(results.get() for _ in range(size)), strict=True)
    assert set(sums) == {sum(range(1, size + 1))}
    addresses = set().union(*found)
    assert len(addresses) > 1
    assert all(ipaddress.ip_address(host).is_loopback for host, _ in addresses), addresses
