"""A Ray cluster on this machine: a head, and two nodes that can hang, die and come back.

Each node has its own cache folder, like a machine; a node that comes back has the same one, without
the shards in it. Processes authenticate with a token, since Ray listens on the network.
"""

import contextlib
import os
import secrets
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

from benchmarks.chaos import processes
from benchmarks.chaos.services import free_port

NODES = 2
OBJECT_STORE_BYTES = 80 * 2**20
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # A node that does not respond counts as lost after about 20 s instead of a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
}


class Nodes:
    """The nodes of the cluster, by number. Every method may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        # Before the first import of Ray, which reads some of it only then.
        os.environ.update(ENVIRONMENT, RAY_AUTH_TOKEN=secrets.token_hex(32))
        from ray.cluster_utils import Cluster

        self.folder, self._lock = folder, threading.RLock()
        self._nodes: dict[int, Any] = {}
        port = free_port()
        # Ray's helpers would search this machine for a cluster, and fail if they found others.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        head = {"num_cpus": 0, "dashboard_port": port, **self._options("head")}
        # Without its hooks, which replace signal handlers and work in the main thread only.
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self.address: str = self._cluster.address
        for number in range(NODES):
            self.add(number)

    def cache(self, name: str) -> Path:
        """Return the folder of the caches of a node, or of the driver."""
        return self.folder / "cache" / name

    def environment(self, name: str) -> dict[str, str]:
        """Return what distinguishes the environment of a node, or of the driver."""
        temporary = self.folder / "tmp" / name
        temporary.mkdir(parents=True, exist_ok=True)
        return {"XDG_CACHE_HOME": str(self.cache(name)), "TMPDIR": str(temporary)}

    def _options(self, name: str) -> dict[str, Any]:
        return {
            "temp_dir": str(self.folder / "ray"),
            "object_store_memory": OBJECT_STORE_BYTES,
            "env_vars": self.environment(name),
        }

    def add(self, number: int) -> None:
        """Start a node, with the cache that it had but for the shards."""
        with self._lock:
            self.drop_shards(number)
            options = self._options(f"node{number}")
            self._nodes[number] = self._cluster.add_node(num_cpus=1, **options)

    def drop_shards(self, number: int) -> None:
        """Delete the shards in the cache of a node."""
        cache = self.cache(f"node{number}") / "guidance-train" / "shards"
        shutil.rmtree(cache, ignore_errors=True)

    def alive(self) -> list[int]:
        """Return the numbers of the nodes that were not lost."""
        with self._lock:
            return sorted(self._nodes)

    def raylet(self, number: int) -> int:
        """Return the process id of a node's raylet."""
        pid: int = self._nodes[number].all_processes["raylet"][0].process.pid
        return pid

    def family(self, number: int) -> list[int]:
        """Return all processes of a node, its raylet first."""
        raylet = self.raylet(number)
        return [raylet, *processes.descendants(raylet)]

    def identifier(self, number: int) -> str:
        """Return Ray's id of a node."""
        return str(self._nodes[number].node_id)

    def lose(self, number: int) -> None:
        """Kill the raylet of a node, whose other processes then exit."""
        with self._lock, contextlib.suppress(Exception):
            node = self._nodes.pop(number)
            self._cluster.remove_node(node, allow_graceful=False)

    def replace_ended(self) -> None:
        """Replace nodes that have ended after Ray had lost them."""
        with self._lock:
            running = processes.parents()
            for number in self.alive():
                if self.raylet(number) not in running:
                    self.lose(number)
                    self.add(number)

    def ranks(self, number: int | None = None) -> list[int]:
        """Return the processes of ranks on a node, or on all."""
        with self._lock:
            numbers = self.alive() if number is None else [number]
            return processes.actors([self.raylet(n) for n in numbers], processes.RANK_TITLE)

    def controllers(self) -> list[int]:
        """Return the process of Ray Train's controller, if it runs."""
        with self._lock:
            raylets = [self.raylet(n) for n in self.alive()]
            raylets.append(self._cluster.head_node.all_processes["raylet"][0].process.pid)
        return processes.actors(raylets, processes.CONTROLLER_TITLE)

    def close(self) -> None:
        """Stop all nodes, also those that hang."""
        for number in self.alive():
            processes.send(self.family(number), signal.SIGCONT)
        self._cluster.shutdown()
