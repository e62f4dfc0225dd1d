"""The kinds of faults, and those of processes and nodes.

Each is injected by one function, which also ends what does not end without it.
"""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos import processes
from benchmarks.chaos.nodes import Nodes
from benchmarks.chaos.proxy import FaultyProxy
from benchmarks.chaos.services import Objects, Server
from benchmarks.chaos.training import Training

SHORT, LONG = (2.0, 6.0), (15.0, 35.0)  # seconds; the second exceeds most retries
HANG_SECONDS = 150.0  # longer than ray.collective_timeout


@dataclass
class Target:
    """Everything that faults are injected into, and the random draws."""

    training: Training
    nodes: Nodes
    s3: FaultyProxy
    mlflow: FaultyProxy
    mlflow_server: Server
    objects: Objects
    folder: Path
    draws: random.Random
    long_share: float  # of faults that last until retries are exhausted

    def seconds(self) -> float:
        """Draw a duration."""
        return self.draws.uniform(*(LONG if self.draws.random() < self.long_share else SHORT))


class NotPossible(Exception):
    """There is no target for the fault at the moment."""


Inject = Callable[[Target], str]
KINDS: dict[str, Inject] = {}


def kind(name: str) -> Callable[[Inject], Inject]:
    """Register a function as a kind of fault; it returns a description of what it did."""

    def register(function: Inject) -> Inject:
        KINDS[name] = function
        return function

    return register


def choose(target: Target, found: list[int], what: str) -> int:
    """Draw one of the processes or nodes found. Raises NotPossible."""
    if not found:
        raise NotPossible(f"there is no {what}")
    return target.draws.choice(found)


def driver_of(target: Target) -> int:
    """Return the process id of the driver. Raises NotPossible."""
    driver = target.training.driver
    if driver is None or driver.poll() is not None:
        raise NotPossible("there is no driver")
    return driver.pid


@kind("kill-rank")
def kill_rank(target: Target) -> str:
    """Kill a rank."""
    pid = choose(target, target.nodes.ranks(), "rank")
    processes.send([pid], signal.SIGKILL)
    return f"process {pid}"


@kind("kill-loader")
def kill_loader(target: Target) -> str:
    """Kill a loader process."""
    pid = choose(target, processes.loaders(target.nodes.ranks()), "loader process")
    processes.send([pid], signal.SIGKILL)
    return f"process {pid}"


@kind("kill-node")
def kill_node(target: Target) -> str:
    """Kill a raylet; the node comes back later."""
    number = choose(target, target.nodes.alive(), "node")
    target.nodes.lose(number)
    seconds = target.seconds()
    time.sleep(seconds)
    target.nodes.add(number)
    return f"node {number}, back after {seconds:.0f} s"


@kind("drain-node")
def drain_node(target: Target) -> str:
    """Drain a node with a deadline, as a spot instance; it is gone at the deadline."""
    number = choose(target, target.nodes.alive(), "node")
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "drain-node", f"--address={target.nodes.address}"]
    command += [f"--node-id={target.nodes.identifier(number)}", "--reason-message=chaos"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds=8"]
    subprocess.run(command, capture_output=True, timeout=60, check=False)
    time.sleep(8.0)
    target.nodes.lose(number)
    target.nodes.add(number)
    return f"node {number}"


@kind("hang-node")
def hang_node(target: Target) -> str:
    """Stop all processes of a node for a while. A node that Ray has lost then ends; see `Nodes`."""
    number = choose(target, target.nodes.alive(), "node")
    family, seconds = target.nodes.family(number), target.seconds()
    processes.send(family, signal.SIGSTOP)
    time.sleep(seconds)
    processes.send(family, signal.SIGCONT)
    return f"node {number} for {seconds:.0f} s"


@kind("hang-rank")
def hang_rank(target: Target) -> str:
    """Stop a rank for a while, or until the training has replaced it."""
    pid, seconds = choose(target, target.nodes.ranks(), "rank"), target.seconds()
    processes.send([pid], signal.SIGSTOP)
    seconds = seconds if seconds < LONG[0] else HANG_SECONDS
    until = time.monotonic() + seconds
    while time.monotonic() < until and pid in processes.parents():
        time.sleep(0.2)
    processes.send([pid], signal.SIGCONT)
    return f"process {pid} for {seconds:.0f} s at most"


@kind("kill-controller")
def kill_controller(target: Target) -> str:
    """Kill Ray Train's controller."""
    pid = choose(target, target.nodes.controllers(), "controller")
    processes.send([pid], signal.SIGKILL)
    return f"process {pid}"


@kind("kill-driver")
def kill_driver(target: Target) -> str:
    """Kill the driver."""
    pid = driver_of(target)
    processes.send([pid], signal.SIGKILL)
    return f"process {pid}"


@kind("stop-driver")
def stop_driver(target: Target) -> str:
    """Send SIGTERM to the driver."""
    pid = driver_of(target)
    processes.send([pid], signal.SIGTERM)
    return f"process {pid}"


@kind("interrupt-driver")
def interrupt_driver(target: Target) -> str:
    """Send two SIGTERM to the driver."""
    pid = driver_of(target)
    processes.send([pid], signal.SIGTERM)
    time.sleep(1.0)
    processes.send([pid], signal.SIGTERM)
    return f"process {pid}"


@kind("hang-driver")
def hang_driver(target: Target) -> str:
    """Stop the driver for a while."""
    pid, seconds = driver_of(target), target.seconds()
    processes.send([pid], signal.SIGSTOP)
    time.sleep(seconds)
    processes.send([pid], signal.SIGCONT)
    return f"process {pid} for {seconds:.0f} s"


@kind("second-driver")
def second_driver(target: Target) -> str:
    """Run the same command on another machine (with its own cache) while it runs."""
    driver_of(target)
    environment = target.nodes.environment("second-driver")
    log = target.folder / f"second-driver-{time.monotonic_ns()}.log"
    second = target.training.command(environment, log)
    threading.Thread(target=second.communicate, daemon=True).start()
    try:
        code: int | str = second.wait(90)
    except subprocess.TimeoutExpired:
        second.kill()
        code = "none in 90 s"
    return f"exit code {code}"
