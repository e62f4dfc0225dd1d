"""`jobs.train` as a user runs it. `.ci/run` runs `jobs.demo`."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.train import duration, run_page, summary
from tests.jobs.commands import ROOT, plain_lines, results, run


def test_training_without_ray_from_relative_paths(folder: Path) -> None:
    done = run(
        folder,
        "train",
        *("--data.train", "shards/shapes-train", "--data.test", "shards/shapes-val"),
        *("--ray.enabled", "false", "--model.image_size", "64", "--train.epochs", "1"),
        *("--registry.name", "shapes", "--registry.min_ap", "null", "--run", "one"),
        *("--data.loader_workers", "0"),
    )
    figures = results(done)
    assert figures["model_uri"] == "models:/shapes/1"
    assert figures["tracking_uri"] == f"sqlite:///{folder}/mlflow/mlflow.db"
    assert Path(figures["checkpoint"]).parent == folder / "runs" / "one"
    assert "test/ap" in figures["metrics"]
    assert "step 2/2" in done.stderr


def test_user_error_is_one_line_and_exit_code_2(folder: Path) -> None:
    done = run(folder, "train", "--data.train", "shards/absent", "--run", "one")
    assert done.returncode == 2
    first, line = done.stderr.splitlines()
    assert first.startswith(f"run one: stored in {folder}/runs/one, reported to sqlite:///")
    assert line.startswith("error: ")
    assert "shards/absent" in line
    assert done.stdout == ""


@pytest.mark.parametrize("job", ["train", "tune"])
def test_first_line_comes_before_slow_imports(job: str, tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("torch", "ray", "mlflow", "numpy"):
    sys.modules[name] = None  # importing it raises ImportError
from jobs.{job} import main
try:
    main(["--data.train", "x", "--data.val", "x"])
except ImportError:
    print("import")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout == "import\n"
    assert re.fullmatch(
        rf"run {job}-\d{{8}}-\d{{6}}: stored in {tmp_path}/runs/{job}-\S+, reported to \S+\n",
        done.stderr,
    )


def test_run_page_of_a_file_is_a_command_without_telemetry() -> None:
    first, program, *rest = shlex.split(run_page("sqlite:////abs/mlflow.db", "a1"))
    assert first == "MLFLOW_DISABLE_TELEMETRY=true"
    assert Path(program).name == "mlflow"
    assert rest == ["ui", "--backend-store-uri", "sqlite:////abs/mlflow.db"]


def test_run_page_of_a_server_is_an_address_without_credentials() -> None:
    assert run_page("http://host:5000/", "a1") == "http://host:5000/#/runs/a1"
    assert run_page("https://me:pass@host", "a1") == "https://host/#/runs/a1"
    page = "http://host/#/experiments/3/runs/a1?workflowType=machine_learning"
    assert run_page("http://host", "a1", "3") == page


RESULT = {
    "run": "bccd-1",
    "run_id": "a1",
    "tracking_uri": "http://host:5000",
    "run_page": "http://host:5000/#/runs/a1",
    "checkpoint": "/runs/bccd-1/step-00000040",
    "best_step": 40,
    "total_steps": 60,
    "metrics": {"val/ap": 0.5, "val/ap50": 0.75, "val/ar_1": 0.1},
    "seconds": {"fit": 754.2},
    "model_uri": "models:/bccd/3",
    "unscored": {},
}


def test_summary_names_best_step_time_run_page_and_next_command() -> None:
    assert summary(RESULT) == [
        "run         bccd-1 (a1)",
        "checkpoint  /runs/bccd-1/step-00000040",
        "best step   40 of 60",
        "val/ap      0.5000",
        "val/ap50    0.7500",
        "time        12 min 34 s",
        "model       models:/bccd/3",
        "run page    http://host:5000/#/runs/a1",
        "next        python -m jobs.predict --model models:/bccd/3 --images DIR --out DIR "
        "--tracking.uri http://host:5000",
    ]


def test_summary_without_evaluation_and_registration_names_the_checkpoints() -> None:
    assert "not scored  data.val has no objects of owl, elk" in summary(
        {**RESULT, "unscored": {"val": ["owl", "elk"]}}
    )
    lines = summary({**RESULT, "metrics": {}, "model_uri": None, "best_step": 60})
    assert "last step   60 of 60" in lines
    assert lines[-1] == "next        python -m jobs.checkpoints list /runs/bccd-1"


def test_summary_masks_secrets_and_keeps_options_of_the_storage() -> None:
    checkpoint = "s3://runs/a b/step-00000040?secret_key=x&region=eu"
    lines = summary({**RESULT, "checkpoint": checkpoint, "model_uri": None})
    assert lines[1] == "checkpoint  s3://runs/a b/step-00000040?secret_key=***&region=eu"
    assert shlex.split(lines[-1])[-1] == "s3://runs/a b?secret_key=***&region=eu"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (7500.0, "2 h 05 min")]
)
def test_duration_is_in_words(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.integration
def test_output_of_ray_workers_is_plain(folder: Path) -> None:
    data = ("--data.train", "shards/shapes-train", "--data.val", "shards/shapes-val")
    small = ("--model.image_size", "64", "--train.epochs", "1", "--ray.workers", "2")
    small += ("--train.precision", "fp32")
    done = run(folder, "train", *data, *small, "--run", "two")
    figures = results(done)
    assert figures["best_step"] == figures["total_steps"] == 2
    announced, title, *progress = plain_lines(done.stderr)
    assert announced.startswith(f"run two: stored in {folder}/runs/two, reported to sqlite:///")
    assert (
        title == "slim-retinanet with mutual_guidance, 2 workers (CPU, fp32): 2 steps of 8 images"
    )
    assert any(line.startswith("step 2: val ap ") for line in progress)
    assert progress[-1].startswith("next        python -m jobs.checkpoints list ")
