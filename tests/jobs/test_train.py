"""`jobs.train` and `jobs.tune` as a user runs them. `.ci/run` runs `jobs.demo`."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import prepare
from jobs.train import duration, run_page, summary

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


RESULT = {
    "run": "bccd-1",
    "run_id": "a1",
    "tracking_uri": "http://host:5000",
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


def plain_lines(text: str) -> list[str]:
    """Return the lines of output, which must have neither colours nor Ray's process ids."""
    assert "\x1b" not in text
    assert "pid=" not in text
    return text.splitlines()


@pytest.mark.integration
def test_output_of_ray_workers_is_plain(folder: Path) -> None:
    data = ("--data.train", "shards/shapes-train", "--data.val", "shards/shapes-val")
    small = ("--model.image_size", "64", "--train.epochs", "1", "--ray.workers", "2")
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


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_interrupted_sweep_is_resumed(folder: Path) -> None:
    small = ("--model.image_size", "64", "--train.epochs", "12", "--sweep.trials", "1")
    arguments = ("--config", "sweeps/smoke", *small, "--run", "search")

    def accept_ctrl_c() -> None:  # a shell starts background jobs with the signal ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, "-m", "jobs.tune", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=accept_ctrl_c,
    ) as sweep:
        assert sweep.stderr is not None
        lines = iter(sweep.stderr)
        assert any("step 8: val ap" in line for line in lines)  # after 4 of 12 epochs
        sweep.send_signal(signal.SIGINT)
        *_, last = lines
    assert last == "interrupted; to resume, run the same command with --run search\n"
    assert sweep.returncode == 130
    done = run(folder, "tune", *arguments)
    (trial,) = results(done)["trials"]
    assert (trial["epochs"], trial["status"]) == (12.0, "finished")
    lines = plain_lines(done.stderr)
    assert any("resuming after step" in line for line in lines)
    assert not any("step 2: val ap" in line for line in lines)  # trained before, and not again
    # A finished sweep is extended by more trials only.
    again = run(folder, "tune", *arguments)
    assert again.returncode == 2 and "raise sweep.trials to extend it" in again.stderr
    more = results(run(folder, "tune", *arguments, "--sweep.trials", "2"))["trials"]
    assert {row["name"] for row in more} == {"t0001", "t0002"}
    assert trial in more


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_sweep_writes_a_recipe_that_trains(folder: Path) -> None:
    """Run trials that take the whole machine, one at a time, also after an early stop."""
    recipe = str(ROOT / "configs" / "sweeps" / "smoke.yaml")
    small = ("--model.image_size", "64", "--train.epochs", "3", "--train.batch_size", "8")
    whole = ("--ray.cpus_per_worker", str((os.cpu_count() or 1) - 0.5))
    done = run(folder, "tune", "--config", recipe, *small, *whole, "--run", "search")
    figures = results(done)
    lines = plain_lines(done.stderr)
    assert not [line for line in lines if "study" in line or "View detailed results" in line]
    for trial in figures["trials"]:
        assert any(line.startswith(f"trial {trial['name']}: slim-") for line in lines)
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


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_trial_that_fails_is_named_and_tried_again(folder: Path) -> None:
    """A point that the network cannot train with: the others end, and the sweep has failed."""
    data = ("--data.train", "shards/shapes-train", "--data.val", "shards/shapes-val")
    recipe = {
        "model": {"image_size": 64},
        "train": {"epochs": 2, "warmup_steps": 1},
        "data": {"loader_workers": 0},
        "ray": {"cpus_per_worker": 0.5},
        "sweep": {
            "searcher": "grid",
            "retries": 1,
            "scheduler": "none",
            "space": {"train.lr": {"grid": [0.01, 1e30]}},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = run(folder, "tune", "--config", "recipe.yaml", *data, "--run", "search")
    assert done.returncode == 1
    lines = plain_lines(done.stderr)
    assert "1 of 2 trials failed, the first: t0002: " in lines[-1]
    assert "search/best.yaml is the best of the others" in lines[-1]
    assert sum(line.startswith("trial t0002 starts") for line in lines) == 2
    assert not any("Traceback" in line for line in lines)
    best = yaml.safe_load((folder / "runs" / "search" / "best.yaml").read_text())
    assert best["train"]["lr"] == 0.01
    again = run(folder, "tune", "--config", "recipe.yaml", *data, "--run", "search")
    assert again.returncode == 1
    assert not any(line.startswith("trial t0001") for line in plain_lines(again.stderr))
