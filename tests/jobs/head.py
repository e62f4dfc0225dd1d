"""A Ray head for tests, on free ports, that leaves no process behind."""

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

from tests.ports import free_ports

BIN = Path(sys.executable).parent
START_SECONDS = 90


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


@contextmanager
def ray_head(cpus: int = 2) -> Iterator[str]:
    """Start a head with its own temporary folder and yield the address of its job server.

    The folder's name is in the command line of each of its processes, and only by it are they
    found and ended.
    """
    # Short, since Ray makes Unix sockets below it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    gcs, dashboard, client, agent = free_ports(4)
    command = [BIN / "ray", "start", "--head", "--block", f"--num-cpus={cpus}"]
    command += [f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment()
        )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for_jobs(address, process, folder / "head.log")
            yield address
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
