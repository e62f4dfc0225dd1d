"""A training submitted to a running cluster ends as one started by hand does."""

import json
import subprocess

import pytest
from mlflow import MlflowClient
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs import prepare
from tests.conftest import ROOT
from tests.jobs.head import BIN, environment, ray_head

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RECIPE = """\
data: {loader_workers: 0}
model: {backbone: slim, image_size: 128}
train: {epochs: 1, batch_size: 8, warmup_steps: 2}
evaluate: {pictures: 2}
registry: {name: submitted}
ray: {workers: 2, max_failures: 0}
"""


@pytest.fixture(scope="module")
def head():
    with ray_head(cpus=2) as address:
        yield address


def submit(address, *entrypoint):
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ROOT]
    return subprocess.run(
        [*command, "--", *entrypoint],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


def test_submitted_training_registers_a_version(head, tmp_path):
    for split, count, seed in (("train", 32, 0), ("test", 8, 1)):
        command = ["--source", "shapes", "--count", str(count), "--seed", str(seed)]
        prepare.main([*command, "--split", split, "--out", str(tmp_path / split)])
    (tmp_path / "recipe.yaml").write_text(RECIPE, "utf-8")
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"

    done = submit(
        head,
        *("python", "-m", "jobs.train", "--json", "--config", tmp_path / "recipe.yaml"),
        *("--run", "submitted", "--data.train", tmp_path / "train"),
        *("--data.test", tmp_path / "test", "--ray.storage", tmp_path / "runs"),
        *("--tracking.uri", uri),
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (job,) = JobSubmissionClient(head).list_jobs()
    assert job.status == JobStatus.SUCCEEDED
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    result = json.loads(line)
    client = MlflowClient(uri, uri)
    version = client.get_model_version("submitted", "1")
    assert version.run_id == result["run_id"]
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    assert result["model_uri"] == "models:/submitted/1"
    assert 0 <= result["metrics"]["test/ap"] <= 1


def test_a_mistake_fails_the_job_with_its_line(head):
    done = submit(head, "python", "-m", "jobs.train", "--train.epoch", "3")
    assert done.returncode != 0
    assert "unknown option --train.epoch; did you mean --train.epochs?" in done.stdout + done.stderr
