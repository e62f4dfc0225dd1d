"""An S3 server on this machine, for tests with the real clients."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest

from tests.ports import free_port


@contextmanager
def s3_server() -> Iterator[str]:
    """Start an S3 server; yield the URI of a folder in an empty bucket. Sets its credentials."""
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "key"}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=1).close()
                    break
                except OSError:
                    assert server.poll() is None, "moto exited"
                    time.sleep(0.1)
            address = f"http://127.0.0.1:{port}"
            client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
            client.create_bucket(Bucket="runs")
            yield f"s3://runs/all?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
        finally:
            server.terminate()
            server.wait()
