"""A training and a real MLflow server that is killed, restarted, absent or hung."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import tracking
from pipeline.config import Config
from pipeline.errors import OutageError
from pipeline.tracking import connect
from pipeline.training.fit import fit
from tests.conftest import ROOT
from tests.limiting_proxy import LimitingProxy
from tests.mlflow_server import MlflowServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(_server: MlflowServer) -> MlflowServer:
    """Return a server that is running when the test starts."""
    if _server._process is None:
        _server.start()
    return _server


def steps(config: Config, run_id: str, metric: str) -> list[int]:
    return [p.step for p in connect(str(config.tracking.uri)).get_metric_history(run_id, metric)]


def files(config: Config, run_id: str, folder: str) -> set[str]:
    return {f.path for f in connect(str(config.tracking.uri)).list_artifacts(run_id, folder)}


def test_server_restarted_during_training_leaves_no_gap_and_no_duplicate(
    small: Config, server: MlflowServer
) -> None:
    config = small.replace(
        {"tracking.uri": server.uri, "train.epochs": 60.0, "evaluate.every": 30.0}
    ).replace({"train.checkpoint_every": 30.0, "registry.name": "shapes"})
    folder = Path(str(config.ray.storage)) / "one"

    def restart() -> None:
        while not list(folder.glob("**/state*")) and not list(folder.glob("step-*")):
            time.sleep(0.1)  # the first checkpoint is written half-way
        server.kill()
        time.sleep(5.0)
        server.start()

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    result = fit(config, run="one")
    thread.join(100)
    assert not thread.is_alive()
    assert steps(config, result.run_id, "train/loss") == list(range(1, 301))
    assert steps(config, result.run_id, "val/ap") == [150, 300]
    assert files(config, result.run_id, "pictures") == {"pictures/val.jpg", "pictures/test.jpg"}
    run = connect(server.uri).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert result.model_uri == "models:/shapes/1"
    assert not (folder / "tracking").exists()


def test_proxy_that_limits_uploads_delays_only_the_files_above_the_limit(
    small: Config, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small.ray.storage))
    storage = Path(str(small.ray.storage))
    with LimitingProxy(server.uri, limit=20_000) as proxy:
        result = fit(small.replace({"tracking.uri": proxy.uri}), run="one")
        config = small.replace({"tracking.uri": server.uri})
        assert proxy.rejected
        assert steps(config, result.run_id, "train/loss") == list(range(1, 11))
        run = connect(server.uri).get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert any("FINISHED" in value for value in run.data.tags.values())
        kept = {path.name for path in storage.glob("one/tracking/rejected/**/*.*")}
        assert kept == proxy.rejected
        assert "config.yaml" in files(config, result.run_id, "")
        proxy.limit = 10**9
        tracking.main(["sync", "--storage", str(storage)])
    stored = set().union(
        *(files(config, result.run_id, name) for name in ("pictures", "curves", "evaluation"))
    )
    assert {"pictures/val.jpg", "curves/test.png", "evaluation/test.json"} <= stored
    assert not (storage / "one" / "tracking").exists()


def test_sync_sends_everything_to_a_server_that_was_down_at_the_end(
    small: Config, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small.ray.storage))
    monkeypatch.setattr("pipeline.tracking.run.CLOSE_TIMEOUT_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.training.worker.TRACKER_CLOSE_SECONDS", 0.0)
    config = small.replace({"tracking.uri": server.uri})
    folder = Path(str(config.ray.storage)) / "one"

    def kill() -> None:
        while not list(folder.glob("tracking/*.jsonl")):
            time.sleep(0.02)
        server.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = fit(config, run="one")
    thread.join()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    server.start()
    assert connect(server.uri).get_run(result.run_id).info.status == "RUNNING"
    tracking.main(["sync", "--storage", str(config.ray.storage)])
    assert connect(server.uri).get_run(result.run_id).info.status == "FINISHED"
    assert steps(config, result.run_id, "train/loss") == list(range(1, 11))
    assert "curves/test.png" in files(config, result.run_id, "curves")


def test_server_that_never_responds_is_an_error_within_a_minute(
    small: Config, server: MlflowServer
) -> None:
    assert server._process is not None
    os.killpg(server._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(OutageError, match=r"tracking\.uri"):
            fit(small.replace({"tracking.uri": server.uri}), run="one")
    finally:
        os.killpg(server._process.pid, signal.SIGCONT)
    assert time.monotonic() - began < 40


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from pipeline.config import Config
from pipeline.training.fit import fit
call = getattr(MlflowClient, sys.argv[1])
def killed(*args, **kwargs):
    call(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(MlflowClient, sys.argv[1], killed)
fit(Config.from_dict(__import__("json").loads(sys.argv[2])), run="one")
"""


def test_run_killed_during_registration_registers_once(small: Config) -> None:
    config = small.replace({"registry.name": "shapes", "data.val": None, "data.test": None})
    tree = json.dumps(config.model_dump(mode="json"))
    for call in ("create_logged_model", "finalize_logged_model", "create_model_version"):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, call, tree], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    result = fit(config, run="one")
    client = connect(result.tracking_uri)
    run = client.get_run(result.run_id)
    assert (run.info.status, run.data.tags["resumes"]) == ("FINISHED", "3")
    assert len(client.search_runs([run.info.experiment_id])) == 1
    (version,) = client.search_model_versions("name='shapes'")
    assert (int(version.version), version.run_id) == (1, result.run_id)
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(str(model.status) for model in models) == ["FAILED", "READY"]
    (ready,) = [model for model in models if model.status == "READY"]
    assert json.loads(ready.tags["mlflow.modelVersions"]) == [{"name": "shapes", "version": 1}]
