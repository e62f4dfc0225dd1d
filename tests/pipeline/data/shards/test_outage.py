"""A shard server that is gone for half a minute, with the waits that users have."""

import shutil
import threading
from pathlib import Path

import pytest

from pipeline.data import build_train_loader
from tests.nginx import Nginx


@pytest.mark.integration
def test_a_server_down_for_30_seconds_is_waited_for(scenes, tmp_path, make_config, caplog):
    server = Nginx(Path(shutil.copytree(scenes, tmp_path / "served")), tmp_path / "nginx")
    config = make_config(**{"train.epochs": 1.0, "data.cache": str(tmp_path / "cache")})
    server.start()
    loader = build_train_loader(server.uri, config, 0, 1)
    server.stop()
    again = threading.Timer(30.0, server.start)
    again.start()
    try:
        batches = list(loader)
    finally:
        again.join()
        server.stop()
    expected = build_train_loader(scenes, config, 0, 1)
    for got, wanted in zip(batches, expected, strict=True):
        assert got.image_ids == wanted.image_ids and bool((got.images == wanted.images).all())
    assert "retrying in" in caplog.text
