"""Shard sets from an S3 server, read through the real client."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.data import build_train_loader, load_manifest
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.verify import verify
from pipeline.errors import UserError
from pipeline.storage import download, remote
from tests.conftest import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture
def bucket(s3_bucket, scenes, monkeypatch):
    """Upload the scenes into a bucket."""
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.02)
    client, name = s3_bucket
    for path in Path(scenes).iterdir():
        client.upload_file(str(path), name, f"sets/train/{path.name}")
    return client, name, f"s3://{name}/sets/train"


def test_batches_equal_those_of_a_folder(bucket, scenes, make_config, tmp_path):
    _, _, uri = bucket
    config = make_config(
        **{"data.cache": str(tmp_path / "cache"), "data.loader_workers": 2, "train.epochs": 2}
    )
    here, there = (build_train_loader(u, config, 0, 1) for u in (scenes, uri))
    for a, b in zip(here, there, strict=True):
        assert a.image_ids == b.image_ids and bool((a.images == b.images).all())
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 5


def test_changed_and_missing_shards_are_one_line_each(bucket, tmp_path):
    client, name, uri = bucket
    client.put_object(Bucket=name, Key="sets/train/shard-000001.tar", Body=b"x" * 4000)
    client.delete_object(Bucket=name, Key="sets/train/shard-000002.tar")
    shards = ShardSet(uri, ShardCache(tmp_path / "cache"), retries=1)
    assert shards.read(0).image
    with pytest.raises(UserError, match=r"000001\.tar: received 4000 bytes, .*\(2 attempts\)"):
        shards.read(5)
    with pytest.raises(UserError, match=r"shard-000002\.tar: missing"):
        shards.read(10)
    faults = verify(uri).faults
    assert any("shard-000002.tar: missing" in fault for fault in faults)


def test_missing_manifest_or_bucket_is_reported(bucket):
    _, name, _ = bucket
    for uri in (f"s3://{name}/other", "s3://no-such-bucket-here/train"):
        with pytest.raises(UserError, match=r"not a shard set \(manifest\.json not found\)"):
            load_manifest(uri)


def in_a_new_process(uri: str) -> subprocess.CompletedProcess[str]:
    """Verify a set in a new process, because a client keeps its first credentials."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.shards", "verify", uri],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_credentials_come_from_the_environment_unless_access_is_public(bucket, monkeypatch):
    client, name, uri = bucket
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    done = in_a_new_process(uri)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "Unable to locate credentials; set $AWS_ACCESS_KEY_ID" in done.stderr
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "*"}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps({"Statement": [everyone]}))
    options = {"anon": True, "config_kwargs": {"s3": {"addressing_style": "path"}}}
    monkeypatch.setenv("FSSPEC_S3", json.dumps(options))
    done = in_a_new_process(uri)
    assert done.returncode == 0 and "valid: 23 samples" in done.stdout, done.stderr


class Metadata(BaseHTTPRequestHandler):
    """Instance metadata with credentials; the first ``failures`` requests get status 500."""

    failures = 0

    def do_PUT(self) -> None:
        self._respond("token")

    def do_GET(self) -> None:
        keys = {"AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c"}
        times = {"LastUpdated": "2020-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z"}
        content = json.dumps({"Code": "Success", **keys, **times})
        self._respond("role" if self.path.endswith("security-credentials/") else content)

    def _respond(self, content: str) -> None:
        failing = Metadata.failures > 0
        Metadata.failures -= 1
        self.send_response(500 if failing else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_hiccup_of_instance_metadata_is_retried(bucket, monkeypatch, caplog):
    _, _, uri = bucket
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        monkeypatch.setattr(Metadata, "failures", 4)
        monkeypatch.setattr(download, "_local", threading.local())  # no session of another test
        assert load_manifest(uri, retries=8).samples == 23
        assert "Unable to locate credentials; retrying in" in caplog.text
        server.shutdown()
