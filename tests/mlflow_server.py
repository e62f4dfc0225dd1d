"""A real MLflow server on the loopback interface that tests can kill and restart."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

from tests.ports import free_port
from tests.stores import new_store

START_SECONDS = 90


class MlflowServer:
    """A server with sqlite and artifacts in a folder and the same address at every start."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, new_store(folder)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it responds. Raises RuntimeError if it does not."""
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", "--workers=1"]
        command += [f"--port={self.port}", f"--backend-store-uri={self.store}"]
        command += [f"--artifacts-destination={self.folder / 'artifacts'}"]
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            # In its own process group, so that `kill` also ends its workers.
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), closing(urllib.request.urlopen(f"{self.uri}/health", None, 5)):
                return
            time.sleep(0.3)
        log_text = (self.folder / "server.log").read_text("utf-8", "replace")
        self.kill()
        raise RuntimeError(f"the MLflow server does not respond at {self.uri}:\n{log_text[-2000:]}")

    def kill(self) -> None:
        """Send SIGKILL to the server and its workers."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(15)
            self._process = None
