"""Load and serve a version in a new environment that has only the requirements of its bundle."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from mlflow import pyfunc

from pipeline.registry import fetch_model
from tests.conftest import ROOT
from tests.pipeline.registry.conftest import Registered
from tests.pipeline.registry.test_bundle import picture
from tests.ports import free_port

# Installing torch takes minutes and about 1 GB, with CUDA several.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


class Server(NamedTuple):
    address: str
    log: Path


IMAGE = picture(60, 40, kind="PNG")
START_SECONDS, STOP_SECONDS = 180, 30


@pytest.fixture(scope="module")
def bundle(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the first version outside the checkout."""
    folder = fetch_model("models:/shapes/1", tmp_path_factory.mktemp("model"), registered.uri)
    return shutil.copytree(folder, tmp_path_factory.mktemp("outside") / "detector")


@pytest.fixture(scope="module")
def expected(bundle: Path) -> pd.DataFrame:
    """Return the detections of the version in this process."""
    table = pyfunc.load_model(str(bundle)).predict({"image": [IMAGE]})
    assert len(table) == 20
    return table


def clean_environment(venv: Path) -> dict[str, str]:
    """Return the environment of a shell in which the virtual environment is active."""
    hidden = ("PYTHON", "MLFLOW", "VIRTUAL_ENV", "COV_", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    path = f"{venv / 'bin'}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(scope="module")
def venv(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new environment with the requirements of the bundle."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    environment = clean_environment(folder)
    requirements = (bundle / "requirements.txt").read_text().split()
    (small,) = (one for one in requirements if one.startswith("safetensors=="))
    probe = [*pip, "download", "--quiet", "--no-deps", "--dest", str(folder / "probe"), small]
    found = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    if found.returncode and "CI" not in os.environ:
        pytest.skip(f"pip has no package index: {found.stderr.strip().splitlines()[-1]}")
    # The constraints fix the versions of what the requirements themselves require.
    install = ["install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    install += ["--requirement", str(bundle / "requirements.txt")]
    subprocess.run([*pip, *install], env=environment, cwd=bundle.parent, check=True)
    return folder


LOAD = """
import importlib.util, json, pathlib, sys
import mlflow
for name in ("model", "pipeline", "jobs", "pydantic_settings", "ray"):
    assert importlib.util.find_spec(name) is None, name
mlflow.set_tracking_uri(sys.argv[1])
path = pathlib.Path(sys.argv[2])
loaded = [mlflow.pyfunc.load_model(f"models:/shapes/{version}") for version in (1, 2)]
tables = [loaded[0].predict({"image": [image]}) for image in (path.read_bytes(), path)]
assert tables[0].equals(tables[1])
assert len(loaded[1].predict({"image": [path]})) == 20
print(json.dumps(tables[0].to_dict("records")))
"""


def test_version_loads_with_its_requirements_alone(
    registered: Registered, venv: Path, expected: pd.DataFrame, tmp_path: Path
) -> None:
    image = tmp_path / "photo.png"
    image.write_bytes(IMAGE)
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", LOAD, registered.uri, str(image)],
        env=clean_environment(venv),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-3)
    # MLflow compares the installed versions with those of the training.
    assert "mismatch" not in done.stderr and "Warning" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def server(venv: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the version by MLflow's command."""
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    address, log = f"http://127.0.0.1:{port}", folder / "server.log"
    command = ["mlflow", "models", "serve", "--model-uri", str(bundle), "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/usr/bin/env", *command],
            env=clean_environment(venv),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError), closing(urllib.request.urlopen(f"{address}/ping", None, 5)):
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"the server does not respond:\n{log.read_text()[-3000:]}")
        yield Server(address, log)
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and its children, which are in its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


def invoke(server: Server, content: Any) -> tuple[int, Any]:
    """Return the status and the content of the response to a request."""
    request = urllib.request.Request(
        f"{server.address}/invocations",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with closing(urllib.request.urlopen(request, None, 120)) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with closing(error):
            return error.code, json.load(error)


def test_version_is_served_with_its_requirements_alone(
    server: Server, expected: pd.DataFrame, tmp_path: Path
) -> None:
    text = base64.b64encode(IMAGE).decode()
    for content in ({"dataframe_records": [{"image": text}]}, {"inputs": [text]}):
        status, found = invoke(server, content)
        assert status == 200, found
        table = pd.DataFrame(found["predictions"])
        pd.testing.assert_frame_equal(table, expected, rtol=1e-4, atol=1e-3)
    limited = {"inputs": [text], "params": {"max_detections": 3, "calibrated": True}}
    status, found = invoke(server, limited)
    assert (status, len(found["predictions"])) == (200, 3)
    assert found["predictions"][0]["score"] != expected["score"][0]

    path = tmp_path / "photo.png"
    path.write_bytes(IMAGE)
    for value in (str(path), "%%%", None):
        status, found = invoke(server, {"dataframe_records": [{"image": value}]})
        assert status == 400
        assert "row 0: not a readable image" in found["message"]
    assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl not found")
def test_documented_curl_command_answers(server: Server, tmp_path: Path) -> None:
    """The command of docs/registry.md."""
    (block,) = (
        part
        for part in (ROOT / "docs" / "registry.md").read_text().split("```bash\n")
        if "/invocations" in part
    )
    command = block.split("```")[0].replace("http://127.0.0.1:5001", server.address)
    assert server.address in command
    (tmp_path / "photo.jpg").write_bytes(picture(60, 40))
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)["predictions"]) == 20
