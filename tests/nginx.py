"""A real nginx on loopback that serves a folder, with faults if required, unprivileged."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.ports import free_port

CONFIG = """
daemon off;
master_process off;
pid {state}/pid;
error_log {state}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {state}/access.log;
  client_body_temp_path {state}/body;
  proxy_temp_path {state}/proxy;
  fastcgi_temp_path {state}/fastcgi;
  uwsgi_temp_path {state}/uwsgi;
  scgi_temp_path {state}/scgi;
  split_clients $request_id $fate {{ {fates} * fine; }}
  server {{
    listen 127.0.0.1:{port};
    root {root};
    {server}
    location ~ \\.tar$ {{
      if ($fate = error) {{ return 500; }}
      if ($fate = hang_up) {{ return 444; }}
      {shards}
    }}
  }}
}}
"""


class Nginx:
    """A server that a test may start and stop repeatedly, always on the same port."""

    def __init__(self, root: Path, state: Path) -> None:
        found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if not found and not os.environ.get("CI"):
            pytest.skip("nginx is not installed")
        assert found, "nginx is not installed"
        self.binary, self.root, self.state = found, root, state
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, fates: str = "", shards: str = "", server: str = "") -> None:
        """Start to serve the folder.

        ``fates`` are shares of the requests for shards that fail, such as ``20% error; 20%
        hang_up;``. ``shards`` and ``server`` are directives, for shards and for everything.
        """
        self.state.mkdir(exist_ok=True)
        config = self.state / "nginx.conf"
        config.write_text(
            CONFIG.format(
                state=self.state,
                root=self.root,
                port=self.port,
                fates=fates,
                shards=shards,
                server=server,
            )
        )
        self._process = subprocess.Popen(
            [self.binary, "-p", self.state, "-e", self.state / "error.log", "-c", config]
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, (self.state / "error.log").read_text()
            time.sleep(0.02)
        raise AssertionError("nginx does not respond")

    def stop(self) -> None:
        """Kill the process, and with it its connections."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def requests(self, ending: str, status: int | None = None) -> int:
        """Count the requests for paths with this ending, and with this status if it is given."""
        if self._process is not None:
            # nginx logs a request after it has responded, and handles one at a time.
            with socket.create_connection(("127.0.0.1", self.port)) as barrier:
                barrier.sendall(b"GET /barrier HTTP/1.0\r\n\r\n")
                barrier.recv(1)
        log = self.state / "access.log"
        lines = log.read_text().splitlines() if log.exists() else []
        rows = [line.split('"') for line in lines]
        return sum(
            row[1].split()[1].endswith(ending)
            and (status is None or int(row[2].split()[0]) == status)
            for row in rows
        )
