"""`jobs.train` and `jobs.tune` as a person runs them. `.ci/run` runs `jobs.demo`."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import prepare
from jobs.train import look_at

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", "--json", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def results(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    return dict(json.loads(line))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        prepare.main(
            [
                *("--source", "shapes", "--split", split, "--count", "16", "--size", "64"),
                *("--out", str(tmp_path / "shards" / f"shapes-{split}")),
            ]
        )
    return tmp_path


def test_without_ray_from_relative_paths(folder: Path) -> None:
    done = run(
        folder,
        "train",
        *("--data.train", "shards/shapes-train", "--data.test", "shards/shapes-val"),
        *("--ray.enabled", "false", "--model.image_size", "64", "--train.epochs", "1"),
        *("--registry.name", "shapes", "--run", "one", "--data.loader_workers", "0"),
    )
    figures = results(done)
    assert figures["model_uri"] == "models:/shapes/1"
    assert figures["tracking_uri"] == f"sqlite:///{folder}/mlflow/mlflow.db"
    assert Path(figures["checkpoint"]).parent == folder / "runs" / "one"
    assert "test/ap" in figures["metrics"]
    assert "step 2/2" in done.stderr


def test_a_mistake_is_one_line_and_exit_code_2(folder: Path) -> None:
    done = run(folder, "train", "--data.train", "shards/absent", "--run", "one")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "shards/absent" in line
    assert done.stdout == ""


def test_the_command_that_opens_mlflow_reports_to_nobody() -> None:
    first, program, *rest = shlex.split(look_at("sqlite:////abs/mlflow.db"))
    assert first == "MLFLOW_DISABLE_TELEMETRY=true"
    assert Path(program).name == "mlflow"
    assert rest == ["ui", "--backend-store-uri", "sqlite:////abs/mlflow.db"]
    assert look_at("http://host:5000") == "http://host:5000"


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_sweep_ends_in_a_recipe_that_trains(folder: Path) -> None:
    """Trials have the machine one after the other, also after one that was stopped early."""
    recipe = str(ROOT / "configs" / "sweeps" / "smoke.yaml")
    small = ("--model.image_size", "64", "--train.epochs", "3", "--train.batch_size", "8")
    whole = ("--ray.cpus_per_worker", str((os.cpu_count() or 1) - 0.5))
    figures = results(run(folder, "tune", "--config", recipe, *small, *whole, "--run", "search"))
    assert len(figures["trials"]) == 4
    assert {trial["status"] for trial in figures["trials"]} == {"finished", "stopped early"}
    assert all(trial["run_id"] for trial in figures["trials"])
    best = yaml.safe_load(Path(figures["best_yaml"]).read_text())
    assert best["assign"]["name"] == figures["trials"][0]["params"]["assign.name"]
    assert "sweep" not in best
    trained = results(
        run(folder, "train", "--config", figures["best_yaml"], "--ray.enabled", "false")
    )
    assert "val/ap" in trained["metrics"]
