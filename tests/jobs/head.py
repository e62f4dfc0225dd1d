"""A Ray head for tests, on free ports, that leaves no process behind."""

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT
from tests.ports import free_ports

BIN = Path(sys.executable).parent
START_SECONDS = 90
LOOPBACK_HEAD = "export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; ray start --head"


def environment() -> dict[str, str]:
    """Return the environment of the head and its clients: no token, no other cluster."""
    env = {k: v for k, v in os.environ.items() if k not in {"RAY_ADDRESS", "RAY_JOB_HEADERS"}}
    return env | {
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "IMAGE_REVISION": "of-the-image",  # which is not the revision of an upload
    }


class Head(NamedTuple):
    """A running head: its process, the address of its job server, and the ports of its servers."""

    pid: int
    address: str
    ports: set[int]


@contextmanager
def ray_head(cpus: int = 2, script: str = LOOPBACK_HEAD) -> Iterator[Head]:
    """Start a head with its own temporary folder.

    ``script`` ends with ``ray start --head``, to which options are added that keep it apart from
    other heads. The folder's name is in the command line of each of its processes, and only by it
    are they found and ended.
    """
    # Short, since Ray makes Unix sockets below it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    gcs, dashboard, client, agent = free_ports(4)
    before, found, after = script.rstrip().rpartition("ray start --head")
    assert found and not after
    command = ["bash", "-ec", f'{before}exec ray start --head "$@"', "head", "--block"]
    command += [f"--num-cpus={cpus}", f"--temp-dir={folder}", f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment()
        )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for_jobs(address, process, folder / "head.log")
            yield Head(process.pid, address, {gcs, dashboard, client, agent})
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            end_processes_of(folder)
            process.wait(15)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for_jobs(address: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until the job server responds."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), closing(urllib.request.urlopen(f"{address}/api/jobs/", timeout=5)):
            return
        time.sleep(0.5)
    raise RuntimeError(f"no job server at {address}:\n{log.read_text('utf-8', 'replace')[-2000:]}")


def listening_addresses(pid: int) -> set[tuple[str, int]]:
    """Return (address, port) of the TCP sockets on which a process or a descendant listens."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    sockets = set()
    for path in (link for one in family for link in Path(f"/proc/{one}/fd").glob("*")):
        with suppress(OSError):
            sockets.add(os.readlink(path))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                host, port = fields[1].split(":")
                words = [bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8)]
                ip = ipaddress.ip_address(b"".join(words))
                found.add((str(getattr(ip, "ipv4_mapped", None) or ip), int(port, 16)))
    return found


def processes_of(folder: Path) -> list[int]:
    """Return the ids of the processes that name the folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def end_processes_of(folder: Path) -> None:
    """Send SIGKILL to the processes that are left after the head has ended."""
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
