"""The tracking store: its URI, stores that cannot be used, and masked secrets."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from pipeline.config import Config, TrackingConfig
from pipeline.errors import OutageError, UserError
from pipeline.storage import redact
from pipeline.tracking import connect, create_run, mask, resolve_uri
from pipeline.tracking.client import artifact_root, resolve_run_store
from tests.conftest import ROOT
from tests.ports import free_port


def test_resolve_uri_prefers_config_then_environment_then_local_sqlite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment:5000")
    assert resolve_uri(TrackingConfig(uri="http://from.config:5000")) == "http://from.config:5000"
    assert resolve_uri(TrackingConfig()) == "http://from.environment:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert (tmp_path / "mlflow" / "mlflow.db").stat().st_size > 0


@pytest.mark.parametrize(
    "wrong", ["./mlruns", "file:///tmp/runs", "sqlite://", "sqlite:///:memory:"]
)
def test_resolve_uri_rejects_uris_that_are_not_a_store(wrong):
    with pytest.raises(UserError, match=r"tracking\.uri"):
        resolve_uri(TrackingConfig(uri=wrong))


def test_resolve_uri_names_a_file_that_is_not_a_database(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("not a database, " * 1000)
    with pytest.raises(UserError, match=str(path)):
        resolve_uri(TrackingConfig(uri=f"sqlite:///{path}"))


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_create_run_without_server_fails_fast_and_masks_the_password(scheme):
    port = free_port()
    before = time.monotonic()
    config = Config.from_dict({"tracking": {"artifacts": "s3://bucket/runs"}})
    with pytest.raises(OutageError) as error:
        create_run(f"{scheme}://me:s3cret@127.0.0.1:{port}/db", config, "name")
    assert time.monotonic() - before < 10
    assert f"{scheme}://me:***@127.0.0.1:{port}" in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql", "mssql+pyodbc"])
def test_database_without_a_place_for_artifacts_is_rejected(scheme):
    uri = f"{scheme}://me:s3cret@db.example/mlflow"
    with pytest.raises(UserError, match="set tracking.artifacts to a folder or URI") as error:
        resolve_run_store(TrackingConfig(uri=uri))
    assert "s3cret" not in str(error.value)
    assert resolve_run_store(TrackingConfig(uri=uri, artifacts="/nfs")) == uri
    assert resolve_uri(TrackingConfig(uri=uri)) == uri  # of jobs that only read from it
    assert artifact_root(uri, "s3://bucket/runs") == "s3://bucket/runs"
    assert artifact_root(uri, "/nfs/runs") == "file:///nfs/runs"
    assert artifact_root("http://mlflow:5000", None) is None


def test_relative_artifacts_are_rejected():
    with pytest.raises(UserError, match=r"tracking\.artifacts: .*absolute folder"):
        Config.from_dict({"tracking": {"artifacts": "./mlruns"}})


@pytest.mark.integration
def test_new_sqlite_file_is_opened_by_many_processes_at_once(tmp_path):
    code = (
        "import sys; from pipeline.config import Config, TrackingConfig\n"
        "from pipeline.tracking import create_run, resolve_uri\n"
        "uri = resolve_uri(TrackingConfig(uri=sys.argv[1])); create_run(uri, Config(), 'n')"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/mlflow.db"]
    started = [subprocess.Popen(command, cwd=ROOT) for _ in range(5)]
    assert [process.wait(120) for process in started] == [0] * 5
    client = connect(command[-1])
    experiment = client.get_experiment_by_name("detection")
    assert len(client.search_runs([experiment.experiment_id])) == 5


class RefusingHandler(BaseHTTPRequestHandler):
    """A store that responds to every request with the status that its URL begins with."""

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "kind"), [(403, UserError), (404, UserError), (429, OutageError), (503, OutageError)]
)
def test_rejected_request_is_a_mistake_and_a_server_error_an_outage(status, kind):
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusingHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(kind, match=rf"^tracking\.uri .*{status}"):
            connect(f"http://127.0.0.1:{server.server_port}/{status}")
        server.shutdown()


class LosingHandler(BaseHTTPRequestHandler):
    """A store that creates each run that is requested and loses the response."""

    requests: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].split("mlflow/")[-1]
        self.requests.append(path)
        if path == "runs/create":
            self.close_connection = True
            return
        experiment = {"experiment_id": "1", "name": "detection", "lifecycle_stage": "active"}
        body = {"experiment": experiment} if path == "experiments/get-by-name" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_lost_response_creates_one_run_whatever_retries_the_environment_sets():
    code = (
        "import sys; from pipeline.config import Config; from pipeline.tracking import create_run\n"
        "create_run(sys.argv[1], Config(), 'n')"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), LosingHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-c", code, f"http://127.0.0.1:{server.server_port}"],
            cwd=ROOT,
            env={**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"},
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert done.returncode == 1
    assert LosingHandler.requests.count("runs/create") == 1, done.stderr


def test_mask_is_exported() -> None:
    assert mask is redact.mask


def test_importing_tracking_does_not_import_mlflow():
    code = "import pipeline.tracking, sys; print('mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_mlflow_logs_warnings_and_errors_only(uri, capfd):
    connect(uri)
    logger = logging.getLogger("mlflow.tracking")
    logger.info("Downloading artifacts")
    logger.error("the upload failed\nin its second line")
    shown = capfd.readouterr().err
    assert "Downloading" not in shown
    assert "the upload failed\nin its second line" in shown


def test_mlflow_telemetry_is_off():
    import mlflow.telemetry.utils

    assert mlflow.telemetry.utils.is_telemetry_disabled()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
