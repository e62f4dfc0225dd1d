"""A training that is submitted to a running cluster ends like one started by hand."""

import json
import os
import signal
import subprocess
import time

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
registry: {name: submitted, min_ap: null}
ray: {workers: 2, max_failures: 0}
"""


@pytest.fixture(scope="module")
def head():
    with ray_head(cpus=2) as head:
        yield head.address


def submit(address, *entrypoint, revision="unknown"):
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ROOT]
    variables = {"env_vars": {"GIT_REVISION": revision}}
    command += ["--runtime-env-json", json.dumps(variables)]
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
        revision="v1.0-3-g1eec9d2-dirty",
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (job,) = JobSubmissionClient(head).list_jobs()
    assert job.status == JobStatus.SUCCEEDED
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    result = json.loads(line)
    client = MlflowClient(uri, uri)
    version = client.get_model_version("submitted", "1")
    assert version.run_id == result["run_id"]
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.git.commit"] == "v1.0-3-g1eec9d2"
    assert (version.tags["git.revision"], version.tags["git.dirty"]) == ("v1.0-3-g1eec9d2", "true")
    assert result["model_uri"] == "models:/submitted/1"
    assert 0 <= result["metrics"]["test/ap"] <= 1


def test_user_error_fails_the_job_with_its_line(head):
    done = submit(head, "python", "-m", "jobs.train", "--train.epoch", "3")
    assert done.returncode != 0
    assert "unknown option --train.epoch; did you mean --train.epochs?" in done.stdout + done.stderr


STOPPED = """\
data: {loader_workers: 0}
model: {backbone: slim, image_size: 64}
train: {epochs: 60, batch_size: 8, warmup_steps: 2, log_every: 1, checkpoint_steps: 5}
ray: {workers: 2}
"""
STEPS = 240


def test_stopped_and_killed_jobs_resume_by_name(head, tmp_path):
    prepare.main(
        [
            *("--source", "shapes", "--count", "32", "--size", "64", "--split", "train"),
            *("--out", str(tmp_path / "train")),
        ]
    )
    (tmp_path / "recipe.yaml").write_text(STOPPED, "utf-8")
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    folder, jobs = tmp_path / "runs" / "one", JobSubmissionClient(head)
    command = f"python -m jobs.train --config {tmp_path}/recipe.yaml --run one"
    command += f" --data.train {tmp_path}/train --ray.storage {tmp_path}/runs --tracking.uri {uri}"

    def submitted():
        return jobs.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT)})

    def reached(step, job):
        until = time.monotonic() + 180
        while not any(int(p.parent.name[5:]) >= step for p in folder.glob("step-*/meta.json")):
            alive = jobs.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING)
            assert alive and time.monotonic() < until, jobs.get_job_logs(job)[-3000:]
            time.sleep(0.1)

    def ended(job):
        until = time.monotonic() + 240
        while not jobs.get_job_status(job).is_terminal():
            assert time.monotonic() < until, jobs.get_job_logs(job)[-3000:]
            time.sleep(0.5)
        return jobs.get_job_status(job)

    def last_step():
        return max(int(p.parent.name[5:]) for p in folder.glob("step-*/meta.json"))

    job = submitted()
    reached(5, job)
    jobs.stop_job(job)
    assert ended(job) == JobStatus.STOPPED
    logs = jobs.get_job_logs(job)
    assert "stopped: stopped by SIGTERM after step" in logs, logs[-3000:]
    record = json.loads((folder / "run.json").read_text())
    client = MlflowClient(uri, uri)
    assert record["status"] == "stopped"
    assert client.get_run(record["run_id"]).info.status == "KILLED"
    stopped_at = last_step()
    assert f"after step {stopped_at};" in logs  # what was done is what was saved

    job = submitted()
    reached(stopped_at + 10, job)
    os.kill(int(jobs.get_job_info(job).driver_info.pid), signal.SIGKILL)
    assert ended(job) == JobStatus.FAILED
    assert client.get_run(record["run_id"]).info.status == "RUNNING"

    job = submitted()
    assert ended(job) == JobStatus.SUCCEEDED, jobs.get_job_logs(job)[-3000:]
    run = client.get_run(record["run_id"])
    assert (run.info.status, run.data.tags["resumes"]) == ("FINISHED", "2")
    # Submitted without a revision, so that none is claimed.
    assert not {"mlflow.source.git.commit", "git.dirty"} & run.data.tags.keys()
    history = [text for key, text in sorted(run.data.tags.items()) if key.startswith("history.")]
    assert f"workers start after step {stopped_at} of {STEPS}" in " ".join(history)
    assert "resumed after stopped" in history and "resumed after running" in history
    points = client.get_metric_history(record["run_id"], "train/loss")
    assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
