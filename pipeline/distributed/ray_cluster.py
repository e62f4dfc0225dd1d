"""Join the configured Ray cluster, or start one on this machine that listens on loopback only."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence

from pipeline.config import Config, RayConfig
from pipeline.distributed.gpus import GpuChoice, choose_gpus
from pipeline.distributed.ray_private_api import listen_on_loopback
from pipeline.errors import OutageError, UserError

MIN_WAIT_SECONDS = 600.0
DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"  # read by clients of Ray's dashboard
_owned = False  # whether this process started the cluster, which then ends with it


def joined_address(config: RayConfig) -> str | None:
    """Return the address of the cluster to join, or None to start one on this machine."""
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def check_cluster_paths(config: Config) -> None:
    """Raise UserError if a job on a joined cluster would write results to its own folder.

    A submitted job runs in a copy of the working directory that is deleted afterwards.
    """
    if not config.ray.enabled or joined_address(config.ray) is None:
        return
    if config.ray.storage is None:
        raise UserError(
            "ray.storage is not set; on a cluster give a folder or URI that all nodes can access"
        )
    if config.tracking.uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "tracking.uri is not set; on a cluster give an MLflow server, or a sqlite:////FILE "
            "that all workers can access"
        )


@contextlib.contextmanager
def ray_cluster(config: RayConfig, *, sweep: bool = False) -> Iterator[bool]:
    """Connect to Ray inside the block; disconnect afterwards unless it was already connected.

    Yields whether this process started the cluster, which then ends with it.

    A cluster for a ``sweep`` has the dashboard: the trials' drivers end before the cluster, and
    Ray's helpers that clean up after them use it to find out which drivers are alive.
    Raises UserError if the address does not respond, or if a cluster on this machine does not have
    the resources for the configured workers, and OutageError if the machine is too busy to start.
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
        raise UserError(f"ray.address {address!r} does not respond: {error}") from None
    try:
        check_resources(config)
        if address is not None:  # a cluster started here has no other users
            report_if_busy(config)
        yield _owned
    finally:
        ray.shutdown()
        _owned = False


def _start_here(dashboard: bool) -> None:
    import ray

    global _owned
    _owned = True
    # This machine is not preempted, and the watcher would log an error at start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not dashboard:  # which the state reconciliation needs to look for dead drivers
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
    port = _free_port()
    with listen_on_loopback(), _dashboard_address(f"http://127.0.0.1:{port}"):
        try:
            ray.init(
                address="local",
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                dashboard_port=port,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray raises no subclass for this
            if "timed out during startup" not in str(error):
                raise
            raise OutageError(
                "Ray did not start on this machine within 30 s, as happens when other programs "
                f"keep its {os.cpu_count()} CPUs busy (load {os.getloadavg()[0]:.0f}); repeat the "
                "command when there is less load"
            ) from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def _dashboard_address(url: str) -> Iterator[None]:
    """Give processes of a Ray that is started inside the block the address of its dashboard.

    Otherwise Ray's helpers search this machine for a cluster, and fail if they find more than one.
    """
    before = os.environ.get(DASHBOARD_VARIABLE)
    os.environ[DASHBOARD_VARIABLE] = url
    try:
        yield
    finally:
        del os.environ[DASHBOARD_VARIABLE]
        if before is not None:
            os.environ[DASHBOARD_VARIABLE] = before


def check_resources(config: RayConfig) -> None:
    """Raise UserError if the cluster does not have the resources for the configured workers.

    With ``ray.wait_for_nodes`` it prints a line instead, and Ray Train waits for that time. A
    cluster that listens on loopback cannot grow.
    """
    import ray

    missing = _missing_resources(config, ray.cluster_resources(), node_resources())
    if missing is None:
        return
    text = f"{missing[0]}, the cluster has {missing[1]}"
    if on_loopback():
        raise UserError(f"{text}; lower ray.workers or ray.cpus_per_worker")
    if not config.wait_for_nodes:
        raise UserError(
            f"{text}; add nodes, lower ray.workers or ray.cpus_per_worker, or set "
            "ray.wait_for_nodes to the minutes to wait for new nodes"
        )
    print(
        f"{text}; waiting up to {longest_wait(config) / 60:g} minutes for more nodes",
        file=sys.stderr,
        flush=True,
    )


def node_resources() -> list[dict[str, float]]:
    """Return the resources of each node of the connected cluster, used or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def worker_slots(
    config: RayConfig, nodes: Sequence[Mapping[str, float]], gpu: bool, overhead: float = 0.0
) -> int:
    """Return how many workers fit on the nodes, each on one of them.

    ``overhead`` is the CPUs that something else may take beside each worker.
    """
    slots = 0
    for node in nodes:
        cpus = node.get("CPU", 0.0)
        cpus -= overhead * math.ceil(cpus / config.cpus_per_worker)
        fits = math.floor(cpus / config.cpus_per_worker + 1e-6)
        slots += min(fits, math.floor(node.get("GPU", 0.0))) if gpu else fits
    return slots


def gpu_choice(config: RayConfig, resources: Mapping[str, float]) -> GpuChoice:
    """Return whether workers get GPUs in a cluster with these resources."""
    return choose_gpus(config.gpu, int(resources.get("GPU", 0.0)), config.min_workers)


def on_loopback() -> bool:
    """Return whether the connected cluster listens on loopback, so that it has one machine only."""
    import ray

    return bool(ray.get_runtime_context().gcs_address.startswith("127.0.0.1"))


def longest_wait(config: RayConfig) -> float:
    """Return the seconds without workers after which a training ends."""
    return max(MIN_WAIT_SECONDS, 60.0 * config.wait_for_nodes)


def report_if_busy(config: RayConfig) -> None:
    """Print a line if the cluster is large enough for the workers, but in use by others."""
    import ray

    config = config.model_copy(update={"gpu": gpu_choice(config, ray.cluster_resources()).used})
    missing = _missing_resources(config, ray.available_resources())
    if missing is not None and _missing_resources(config, ray.cluster_resources()) is None:
        print(
            f"{missing[0]}, only {missing[1]} are free; waiting for other jobs to end (ray status)",
            file=sys.stderr,
            flush=True,
        )


def _missing_resources(
    config: RayConfig,
    have: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]] | None = None,
) -> tuple[str, str] | None:
    """Return what the minimum number of workers needs and what there is, if that is too little."""
    need = {"CPU": config.min_workers * config.cpus_per_worker}
    if config.gpu is True:
        need["GPU"] = float(config.min_workers)
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0):
            needed = f"ray.workers {config.min_workers} need {amount:g} {kind}s"
            return needed, f"{have.get(kind, 0.0):g}"
    if nodes is not None:
        slots = worker_slots(config, nodes, config.gpu is True)
        if slots < config.min_workers:
            each = f"{config.cpus_per_worker:g} CPUs{' and a GPU' if config.gpu is True else ''}"
            needed = f"ray.workers {config.min_workers} need {each} each, on one node"
            return needed, f"nodes for {slots} of them"
    return None
