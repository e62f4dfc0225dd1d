"""Join the configured Ray cluster, or start one on this machine that listens on loopback only."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping

from pipeline.config import Config, RayConfig
from pipeline.distributed.ray_private_api import listen_on_loopback
from pipeline.errors import UserError

LEAST_SECONDS = 600.0
_owned = False  # whether this process started the cluster, which then ends with it


def joined_address(config: RayConfig) -> str | None:
    """The address of the cluster to join; None where one is started on this machine."""
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def check_cluster_paths(config: Config) -> None:
    """Raise UserError where a job on a joined cluster would leave its results in its own folder.

    A submitted job runs in a copy of the working directory that is deleted afterwards.
    """
    if not config.ray.enabled or joined_address(config.ray) is None:
        return
    if config.ray.storage is None:
        raise UserError(
            "ray.storage is not set; on a cluster give a folder or URI that all nodes see"
        )
    if config.tracking.uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "tracking.uri is not set; on a cluster give an MLflow server, or sqlite:////FILE that "
            "all workers see"
        )


@contextlib.contextmanager
def ray_cluster(config: RayConfig, *, sweep: bool = False) -> Iterator[bool]:
    """Connect to Ray inside the block; disconnect afterwards unless it was connected before.

    Yields whether this process started the cluster, which then ends with it.

    In a ``sweep`` drivers end before their cluster, even one that is started here, so that it needs
    the dashboard, which helpers ask who lives.
    Raises UserError if the address does not answer, or if a cluster on this machine alone cannot
    hold the configured workers.
    """
    import ray

    global _owned
    if ray.is_initialized():
        check_resources(config)
        yield _owned
        return
    address = joined_address(config)
    try:
        if address is None:
            _start_here(dashboard=sweep)
        else:
            ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"ray.address {address!r} does not answer: {error}") from None
    try:
        check_resources(config)
        if address is not None:  # nobody else uses a cluster that was started for this
            say_if_busy(config)
        yield _owned
    finally:
        ray.shutdown()
        _owned = False


def _start_here(dashboard: bool) -> None:
    import ray

    global _owned
    _owned = True
    # No one preempts this machine, and the watcher would greet with an error line.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not dashboard:  # which the watch over runs asks whether their drivers live
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
    with listen_on_loopback():
        ray.init(
            address="local",
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
        )


def check_resources(config: RayConfig) -> None:
    """Raise UserError if the cluster as it stands cannot hold the configured workers.

    Where nodes may come and ``ray.wait_for_nodes`` says so, it is a line, and the time that Ray
    Train waits for its workers. A cluster that listens on loopback cannot grow.
    """
    import ray

    lacks = _lacking(config, ray.cluster_resources())
    if lacks is None:
        return
    text = f"{lacks[0]}, the cluster has {lacks[1]}"
    if ray.get_runtime_context().gcs_address.startswith("127.0.0.1"):
        raise UserError(f"{text}; lower ray.workers or ray.cpus_per_worker")
    if not config.wait_for_nodes:
        raise UserError(
            f"{text}; add nodes, lower ray.workers or ray.cpus_per_worker, or set "
            "ray.wait_for_nodes to the minutes that nodes may take to come"
        )
    print(
        f"{text}; waiting up to {longest_wait(config) / 60:g} minutes for more nodes",
        file=sys.stderr,
        flush=True,
    )


def longest_wait(config: RayConfig) -> float:
    """Seconds without workers after which a training ends."""
    return max(LEAST_SECONDS, 60.0 * config.wait_for_nodes)


def say_if_busy(config: RayConfig) -> None:
    """A line where the cluster would hold the workers, but others are using it."""
    import ray

    lacks = _lacking(config, ray.available_resources())
    if lacks is not None and _lacking(config, ray.cluster_resources()) is None:
        print(
            f"{lacks[0]}, only {lacks[1]} are free; waiting for others to end (ray status)",
            file=sys.stderr,
            flush=True,
        )


def _lacking(config: RayConfig, have: Mapping[str, float]) -> tuple[str, str] | None:
    """What the fewest workers need and how much of it there is, where that is too little."""
    need = {"CPU": config.min_workers * config.cpus_per_worker}
    if config.gpu:
        need["GPU"] = float(config.min_workers)
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0):
            wants = f"ray.workers {config.min_workers} need {amount:g} {kind}s"
            return wants, f"{have.get(kind, 0.0):g}"
    return None
