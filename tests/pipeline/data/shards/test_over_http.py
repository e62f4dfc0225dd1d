"""Shard sets from a real nginx that works, fails, drops connections or serves wrong files."""

import asyncio
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.data import build_eval_loader, build_train_loader
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.reader import ShardSet
from pipeline.data.shards.verify import verify
from pipeline.errors import OutageError, UserError
from pipeline.storage import remote
from pipeline.training.fit import check_data
from tests.conftest import ROOT
from tests.nginx import Nginx

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.02)
    monkeypatch.setattr(remote, "MAX_DELAY_SECONDS", 0.1)


@pytest.fixture
def server(scenes, tmp_path):
    """Prepare an nginx, not started, that serves a copy of the scenes."""
    nginx = Nginx(Path(shutil.copytree(scenes, tmp_path / "served")), tmp_path / "nginx")
    yield nginx
    nginx.stop()


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 2**24)


def contents(uri, cache=None, **options) -> list:
    shards = ShardSet(uri, cache, **options)
    return [shards.read(i)[:2] for i in range(len(shards))]


def test_samples_equal_those_of_a_folder_and_shards_are_fetched_once(server, scenes, cache):
    server.start()
    assert contents(server.uri, cache) == contents(scenes)
    assert contents(server.uri, cache) == contents(scenes)
    assert server.requests(".tar") == 5


def test_batches_of_loader_processes_equal_those_of_a_folder(
    server, scenes, make_config, tmp_path, caplog
):
    server.start()
    options = {
        "data.loader_workers": 2,
        "data.crop": 0.5,
        "train.epochs": 2.5,
        "data.cache": str(tmp_path / "cache"),
    }
    config = make_config(**options)
    # Repeated, because connections shared with forked processes would stall.
    for build in (build_train_loader, build_eval_loader) * 3:
        here, there = build(scenes, config, 0, 1), build(server.uri, config, 0, 1)
        for a, b in zip(here, there, strict=True):
            assert a.image_ids == b.image_ids and bool((a.images == b.images).all())
    assert server.requests(".tar", 200) == 5
    assert "retrying" not in caplog.text


def test_shards_are_read_within_an_event_loop(server, scenes, cache):
    server.start()

    async def as_in_a_notebook() -> list:
        return contents(server.uri, cache)

    assert asyncio.run(as_in_a_notebook()) == contents(scenes)


def test_errors_and_dropped_connections_are_retried(server, scenes, cache, caplog):
    server.start(fates="30% error; 30% hang_up;")
    for round_ in range(4):
        fresh = ShardCache(cache.folder / str(round_), cache.limit)
        assert contents(server.uri, fresh, retries=40) == contents(scenes)
    assert server.requests(".tar", 500) and server.requests(".tar", 444)
    assert "status 500" in caplog.text and "retrying in" in caplog.text
    assert server.requests(".tar", 200) == 20


def test_transfer_cut_in_the_middle_is_retried(server, scenes, cache):
    slow = "limit_rate 20k;"
    server.start(shards=slow)
    got = []
    reader = threading.Thread(target=lambda: got.extend(contents(server.uri, cache, retries=40)))
    reader.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if list(cache.folder.glob("*.partial")):
            break
        time.sleep(0.01)
    time.sleep(0.3)  # of a transfer that takes more than a second
    assert list(cache.folder.glob("*.partial")) and not list(cache.folder.glob("*.tar"))
    server.stop()  # with the connection
    time.sleep(0.1)
    server.start()
    reader.join(60)
    assert got == contents(scenes)


def test_truncated_shard_is_one_line_and_leaves_nothing(server, cache):
    path = server.root / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-3000])
    server.start()
    shards = ShardSet(server.uri, cache, retries=2)
    assert shards.read(0).image
    with pytest.raises(UserError, match=r"shard-000001\.tar: received \d+ bytes, .*\(3 attempts\)"):
        shards.read(5)
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".index", ".tar"]


def test_truncated_shard_is_read_once_it_is_repaired(server, scenes, cache):
    path = server.root / "shard-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3000])
    server.start()
    timer = threading.Timer(0.4, path.write_bytes, [whole])
    timer.start()
    assert contents(server.uri, cache, retries=50) == contents(scenes)
    assert server.requests("shard-000001.tar") > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_changed_shard_stops_the_training_in_one_line(server, make_config, tmp_path, workers):
    path = server.root / "shard-000003.tar"
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    server.start()
    config = make_config(
        **{
            "data.cache": str(tmp_path / "cache"),
            "data.retries": 1,
            "data.loader_workers": workers,
        }
    )
    found = hashlib.sha256(data).hexdigest()[:12]
    for build in (build_train_loader, build_eval_loader):
        with pytest.raises(UserError) as caught:
            list(build(server.uri, config, 0, 1))
        assert f"{server.uri}/shard-000003.tar: its sha256 is {found}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_shard_larger_than_in_the_manifest_is_rejected(server, cache):
    with (server.root / "shard-000000.tar").open("ab") as file:
        file.write(bytes(2**20))
    server.start()
    with pytest.raises(UserError, match=r"more than the expected \d+ bytes"):
        ShardSet(server.uri, cache, retries=0).read(0)


def test_missing_shard_is_not_retried(server, cache):
    (server.root / "shard-000000.tar").unlink()
    server.start()
    with pytest.raises(UserError, match=r"shard-000000\.tar: missing, but the manifest lists it"):
        ShardSet(server.uri, cache).read(0)
    assert server.requests("shard-000000.tar") == 1


def test_missing_manifest_is_reported(server):
    server.start()
    with pytest.raises(UserError, match=r"/elsewhere: not a shard set \(manifest\.json not"):
        ShardSet(f"{server.uri}/elsewhere")


def test_forbidden_manifest_is_not_retried(server):
    server.start(server="location = /manifest.json { return 403; }")
    with pytest.raises(UserError, match=r"/manifest\.json: status 403 Forbidden$"):
        ShardSet(server.uri)
    assert server.requests("manifest.json") == 1


def test_unreachable_server_is_one_line(server):
    refused = r"/manifest\.json: cannot connect to 127\.0\.0\.1: Connection refused \(4 attempts\)$"
    with pytest.raises(OutageError, match=refused):
        ShardSet(server.uri, retries=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_server_that_goes_away_is_an_outage_of_the_rank(server, make_config, tmp_path, workers):
    server.start()
    options = {"data.cache": str(tmp_path / "cache"), "data.loader_workers": workers}
    loader = build_train_loader(server.uri, make_config(**options, **{"data.retries": 1}), 0, 1)
    server.stop()
    with pytest.raises(OutageError, match=r"Connection refused \(2 attempts\)$"):
        list(loader)


def test_prefetched_shards_outlast_the_server(server, scenes, cache):
    server.start()
    shards = ShardSet(server.uri, cache)
    shards.prefetch(range(5))
    deadline = time.monotonic() + 20
    while len(list(cache.folder.glob("*.tar"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.stop()
    assert [shards.read(i)[:2] for i in range(23)] == contents(scenes)


def test_failed_prefetch_is_reported_when_the_shard_is_read(server, cache, caplog):
    (server.root / "shard-000001.tar").unlink()
    server.start()
    shards = ShardSet(server.uri, cache, retries=0)
    with caplog.at_level(logging.DEBUG, "pipeline.data.shards.prefetcher"):
        shards.prefetch([1])
        deadline = time.monotonic() + 20
        while "not prefetched" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "not prefetched" in caplog.text and shards.read(0).image
    with pytest.raises(UserError, match="missing"):
        shards.read(5)


def test_verification_over_http(server):
    server.start()
    assert verify(server.uri).faults == []
    (server.root / "shard-000002.index").unlink()
    (server.root / "shard-000004.tar").unlink()
    faults = verify(server.uri).faults
    assert any("shard-000002.index: missing" in fault for fault in faults)
    assert any("shard-000004.tar: missing" in fault for fault in faults)


def test_credentials_for_http_come_from_the_environment(server):
    guard = 'if ($http_authorization != "Bearer secret") { return 401; }'
    server.start(server=guard)
    with pytest.raises(UserError, match="status 401 Unauthorized$"):
        ShardSet(server.uri)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.shards", "verify", server.uri],
        env={**os.environ, "FSSPEC_HTTP": '{"headers": {"Authorization": "Bearer secret"}}'},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0 and "valid: 23 samples" in done.stdout, done.stderr


def test_manifest_is_retried_like_shards(server, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.1)
    monkeypatch.setattr(remote, "MAX_DELAY_SECONDS", 0.2)
    config = make_config(**{"data.cache": str(tmp_path / "cache"), "data.retries": 40})
    later = threading.Timer(2.0, server.start)
    later.start()
    try:
        # As the driver does it, and then a rank, which finds the server at once.
        found = check_data(config.replace({"data.train": server.uri}))
        loader = build_eval_loader(server.uri, config, 0, 1)
    finally:
        later.join()
    assert len(loader.manifest.classes) > 1 and found["train"] == loader.manifest


def test_silent_connection_times_out_and_is_retried(monkeypatch):
    monkeypatch.setattr("pipeline.storage.http_client.READ_TIMEOUT_SECONDS", 0.3)
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                asked.append((connection, connection.recv(100)))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        with pytest.raises(OutageError, match="2 attempts"):
            remote.Remote(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=1).read("x")
        thread.join(5)
    assert len(asked) == 2
    for connection, _ in asked:
        connection.close()
