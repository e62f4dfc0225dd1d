"""Join the configured Ray cluster, or start one on this machine that listens on loopback only."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from pipeline.config import RayConfig
from pipeline.errors import UserError


@contextlib.contextmanager
def ray_cluster(config: RayConfig) -> Iterator[None]:
    """Be connected to Ray inside the block; leave it afterwards unless it was there before.

    Raises UserError if the address does not answer, or if a cluster started here could never hold
    the configured workers.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        if address == "local":
            ray.init(
                address="local",
                include_dashboard=True,  # Ray Train asks its API which actors live
                dashboard_host="127.0.0.1",
                logging_level=logging.WARNING,
                _node_ip_address="127.0.0.1",
            )
        else:
            ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"ray.address {address!r} does not answer: {error}") from None
    try:
        if address == "local":
            check_resources(config)
        yield
    finally:
        ray.shutdown()


def check_resources(config: RayConfig) -> None:
    """Raise UserError if the cluster as it stands cannot hold the configured workers."""
    import ray

    have = ray.cluster_resources()
    need = {"CPU": config.workers * config.cpus_per_worker}
    if config.gpu:
        need["GPU"] = float(config.workers)
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0):
            raise UserError(
                f"ray.workers {config.workers} need {amount:g} {kind}s, the cluster has "
                f"{have.get(kind, 0.0):g}; lower ray.workers or ray.cpus_per_worker"
            )
