"""The servers that the training uses: an S3 server (moto) and an MLflow server, each in a process.

Both run on the loopback interface and can be killed and started again at the same address.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
BUCKET = "chaos"


def free_port() -> int:
    """Return a port on which no process listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Server:
    """A server process in its own process group, so that `kill` also ends its workers."""

    def __init__(self, name: str, command: Sequence[str], port: int, path: str, log: Path) -> None:
        self.name, self.command, self.log = name, command, log
        self.target = f"127.0.0.1:{port}"
        self.uri = f"http://{self.target}"
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it responds. Raises RuntimeError if it does not."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                contextlib.closing(urllib.request.urlopen(f"{self.uri}{self._path}", None, 5)),
            ):
                return
            time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"{self.name} does not respond:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Send SIGKILL to the server and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(15)
            self._process = None


def s3_server(folder: Path) -> Server:
    """Return an S3 server that keeps objects in memory, not started yet."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return Server("the S3 server", command, port, "/moto-api/", folder / "s3.log")


def mlflow_server(folder: Path) -> Server:
    """Return an MLflow server with a sqlite file and artifacts in a folder, not started yet."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", "--workers=1"]
    command += [f"--port={port}", f"--backend-store-uri=sqlite:///{folder}/mlflow.db"]
    command += [f"--artifacts-destination={folder}/artifacts"]
    return Server("the MLflow server", command, port, "/health", folder / "mlflow.log")


class Objects:
    """The objects of the bucket, read and written without the proxy."""

    def __init__(self, uri: str) -> None:
        import boto3

        self._client: Any = boto3.client("s3", endpoint_url=uri)

    def create_bucket(self) -> None:
        """Create the bucket."""
        self._client.create_bucket(Bucket=BUCKET)

    def upload_folder(self, folder: Path, prefix: str) -> None:
        """Upload the files directly in a folder."""
        for path in folder.iterdir():
            self._client.upload_file(str(path), BUCKET, f"{prefix}/{path.name}")

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of all objects below a prefix, by their name below it."""
        pages = self._client.get_paginator("list_objects_v2")
        return {
            item["Key"].removeprefix(prefix): item["Size"]
            for page in pages.paginate(Bucket=BUCKET, Prefix=prefix)
            for item in page.get("Contents", ())
        }

    def truncate(self, key: str) -> None:
        """Cut an object to half its size."""
        data = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data[: len(data) // 2])

    def unfinished_uploads(self) -> list[str]:
        """Return the keys of multipart uploads that were neither completed nor aborted."""
        found = self._client.list_multipart_uploads(Bucket=BUCKET)
        return [upload["Key"] for upload in found.get("Uploads", ())]
