"""A process group whose ranks are all on this machine and listen on the loopback interface only."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist

_HOST = "127.0.0.1"
_listener: socket.socket | None = None  # of rank 0, until it joins


def listen_as_rank_0() -> int:
    """Open the port for the store of the process group in rank 0's process; return the port.

    The store that PyTorch would open listens on all addresses.
    """
    global _listener
    _listener = socket.create_server((_HOST, 0))
    port: int = _listener.getsockname()[1]
    return port


def join_group(backend: str, rank: int, size: int, port: int, timeout_s: int) -> None:
    """Start the process group of ``size`` ranks through the port that rank 0 has opened."""
    # Otherwise ranks listen on the address that the name of the machine stands for.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    timeout, descriptor = timedelta(seconds=timeout_s), None
    if rank == 0:
        assert _listener is not None, "listen_as_rank_0 was called in this process"
        descriptor = _listener.detach()
    store = dist.TCPStore(
        *(_HOST, port, size, rank == 0, timeout),
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
