"""The faults of services, networks and disks."""

import signal
import time

from benchmarks.chaos import processes
from benchmarks.chaos.faults import KINDS, NotPossible, Target, choose, driver_of, kind
from benchmarks.chaos.proxy import FaultyProxy, Trouble

IDLE_SECONDS = 20.0  # that a fault lasts longer if there was no request to break
SPOOL_SECONDS = 5.0  # until points in memory are on the disk again
FULL_DISK_BYTES = (0, 4096, 65536)


@kind("damage-checkpoint")
def damage_checkpoint(target: Target) -> str:
    """Truncate the latest checkpoint and kill a rank, so that it is read."""
    step = target.training.step()
    rank = choose(target, target.nodes.ranks() if step else [], "checkpoint and rank")
    target.objects.truncate(f"runs/{target.training.name}/step-{step:08d}/state.pt")
    processes.send([rank], signal.SIGKILL)
    return f"step {step}"


@kind("full-disk")
def full_disk(target: Target) -> str:
    """Let writes of all ranks, loaders and the driver fail, as on a full disk."""
    ranks, seconds = target.nodes.ranks(), target.seconds()
    if not ranks:
        raise NotPossible("there is no rank")
    affected = [*ranks, *processes.loaders(ranks), driver_of(target)]
    size = target.draws.choice(FULL_DISK_BYTES)
    processes.limit_file_size(affected, size)
    time.sleep(seconds)
    processes.limit_file_size(affected)
    time.sleep(SPOOL_SECONDS)
    return f"files of at most {size} bytes for {seconds:.0f} s"


@kind("lost-cache")
def lost_cache(target: Target) -> str:
    """Delete the cached shards of a node."""
    number = choose(target, target.nodes.alive(), "node")
    target.nodes.drop_shards(number)
    return f"node {number}"


@kind("restart-mlflow")
def restart_mlflow(target: Target) -> str:
    """Kill the MLflow server; start it again later."""
    seconds = target.seconds()
    target.mlflow_server.kill()
    time.sleep(seconds)
    target.mlflow_server.start()
    return f"down for {seconds:.0f} s and its start"


def _troubles() -> None:
    """Register the faults of the two proxies."""
    statuses = {"s3": (500.0, 503.0, 507.0), "mlflow": (500.0, 503.0, 429.0)}
    for service, choices in statuses.items():
        for name in ("refuse", "status", "cut_upload", "cut_response", "slow", "hang"):
            values = choices if name == "status" else (2.0, 8.0) if name == "slow" else (0.0,)
            _register(service, name, values)
    _register("mlflow", "too_large", (20_000.0,))


def _register(service: str, name: str, values: tuple[float, ...]) -> None:
    def inject(target: Target) -> str:
        proxy: FaultyProxy = getattr(target, service)
        value, share = target.draws.choice(values), target.draws.choice((1.0, 1.0, 0.3))
        before, began = sum(proxy.broken.values()), time.monotonic()
        until = began + target.seconds()
        proxy.trouble = Trouble(name, share, value)
        while (now := time.monotonic()) < until or (
            sum(proxy.broken.values()) == before and now < until + IDLE_SECONDS
        ):
            time.sleep(0.1)
        proxy.trouble = None
        seconds, number = time.monotonic() - began, sum(proxy.broken.values()) - before
        detail = f" ({value:g})" if value else ""
        return f"{share:.0%} of requests{detail} for {seconds:.0f} s: {number} broken"

    KINDS[f"{service}-{name.replace('_', '-')}"] = inject


_troubles()
