"""Test a shard server that is down for half a minute, with the default delays."""

import shutil
import threading
from pathlib import Path

import pytest

from pipeline.data import build_train_loader
from tests.nginx import Nginx


@pytest.mark.integration
def test_loader_survives_a_server_that_is_down_for_30_seconds(
    scenes, tmp_path, make_config, caplog
):
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
    for batch, reference in zip(batches, expected, strict=True):
        assert batch.image_ids == reference.image_ids
        assert bool((batch.images == reference.images).all())
    assert "retrying in" in caplog.text
