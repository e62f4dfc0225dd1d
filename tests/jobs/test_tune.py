"""`jobs.tune` as a user runs it: stopped, resumed, extended, beside another sweep."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pipeline.storage.folder import Storage, join
from pipeline.tracking import connect
from tests.jobs.commands import ROOT, plain_lines, results, run
from tests.s3_server import s3_server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_sweep_killed_in_its_confirmation_writes_a_recipe_that_trains(folder: Path) -> None:
    """Run trials that take the whole machine, one at a time, also after an early stop."""
    recipe = str(ROOT / "configs" / "sweeps" / "smoke.yaml")
    small = ("--model.image_size", "64", "--train.epochs", "3", "--train.log_every", "1")
    whole = ("--ray.workers", "2", "--ray.cpus_per_worker", str(((os.cpu_count() or 1) - 0.5) / 2))
    arguments = ("--config", recipe, *small, *whole, "--sweep.confirm.seeds", "1")
    with started(folder, *arguments, "--run", "search") as (killed, its_lines):
        printed = []
        for line in its_lines:
            printed.append(line)
            if re.match(r"trial default-seed1 epoch 1", line):
                break
        killed.kill()
    assert not [line for line in printed if "study" in line or "View detailed results" in line]
    done = run(folder, "tune", *arguments, "--run", "search")
    figures, lines = results(done), plain_lines(done.stderr)
    # Nothing is trained twice.
    assert not [line for line in lines if re.match(r"trial t\d+(:| starts| resumes)", line)]
    assert any(line.startswith("trial default-seed1 resumes after epoch") for line in lines)
    assert not any(re.match(r"trial default-seed1: step 2: val", line) for line in lines)
    for trial in figures["trials"]:
        assert any(line.startswith(f"trial {trial['name']}: slim-") for line in printed)
        assert 0 <= trial["low"] <= trial["ap"] <= trial["high"] <= 1 and trial["seconds"] > 0
    assert len(figures["trials"]) == 4
    assert {trial["status"] for trial in figures["trials"]} == {"finished", "stopped early"}
    arms = {arm["name"]: arm for arm in figures["statement"]["arms"]}
    (point,) = set(arms) - {"default"}
    assert figures["against_default"]["name"] == point
    winner = arms[figures["statement"]["winner"]]
    assert figures["best"]["ap"] == winner["score"]["value"] == winner["scores"][0]
    runs = connect(figures["tracking_uri"]).search_runs(["1"])
    parent = next(one for one in runs if one.info.run_id == figures["run_id"])
    assert parent.data.tags["mlflow.note.content"].startswith("best.yaml is ")
    children = {one.data.tags["trial"]: one.info.status for one in runs if one != parent}
    assert children == {
        **{
            trial["name"]: "FINISHED" if trial["status"] == "finished" else "KILLED"
            for trial in figures["trials"]
        },
        **{f"{name}-seed1": "FINISHED" for name in arms},
    }
    assert winner["name"] in Path(figures["report"]).read_text()
    best = yaml.safe_load(Path(figures["best_yaml"]).read_text())
    assert best["train"]["seed"] == 1 and "sweep" not in best
    # The recipe repeats the confirmed training to the last digit; what NMS gains comes on top.
    best.pop("evaluate")
    own = {"every": 1, "pictures": 0}
    (folder / "best.yaml").write_text(yaml.safe_dump({**best, "evaluate": own}))
    trained = results(run(folder, "train", "--config", "best.yaml"))
    # The order of a sum over classes may differ.
    assert trained["metrics"]["val/ap"] == pytest.approx(winner["scores"][0], rel=1e-12)


def test_trial_that_is_not_finite_is_named_and_not_retried(folder: Path) -> None:
    """The others end, and the sweep has failed; the next start tries the trial again."""
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
            "confirm": {"points": 0},
            "space": {"train.lr": {"grid": [0.01, 1e30]}},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = run(folder, "tune", "--config", "recipe.yaml", *data, "--run", "search")
    assert done.returncode == 1
    lines = plain_lines(done.stderr)
    assert "1 of 2 trials failed, the first: t0002: " in lines[-1]
    assert "search/best.yaml is what the others show" in lines[-1]
    assert sum(line.startswith("trial t0002 starts") for line in lines) == 1
    assert "is not finite at step" in lines[-1]
    assert "Traceback" not in done.stderr, done.stderr
    best = yaml.safe_load((folder / "runs" / "search" / "best.yaml").read_text())
    assert best["train"]["lr"] == 0.01
    again = run(folder, "tune", "--config", "recipe.yaml", *data, "--run", "search")
    assert again.returncode == 1
    assert not any(line.startswith("trial t0001") for line in plain_lines(again.stderr))
    assert any(line.startswith("trial t0002 starts") for line in plain_lines(again.stderr))


@contextmanager
def started(
    folder: Path, *arguments: str, job: str = "tune"
) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """Start a sweep, or another job; yield its process and the lines of its stderr."""

    def accept_ctrl_c() -> None:  # a shell starts background jobs with the signal ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=accept_ctrl_c,
    ) as sweep:
        assert sweep.stderr is not None
        try:
            yield sweep, iter(sweep.stderr)
        finally:
            sweep.kill()


def processes_of(folder: Path) -> list[str]:
    """Return the commands of the processes that were started in a folder."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and str(folder).encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        (signal.SIGTERM, 143, "stopped: the sweep was stopped by SIGTERM; run the same command"),
        (signal.SIGKILL, -9, None),
    ],
)
def test_stopped_sweep_leaves_no_process_and_trains_nothing_twice(
    folder: Path, how: signal.Signals, code: int, last: str | None
) -> None:
    small = ("--model.image_size", "64", "--train.epochs", "12", "--sweep.trials", "1")
    alone = ("--sweep.confirm.points", "0")
    arguments = ("--config", "sweeps/smoke", *small, *alone, "--run", "search")
    with started(folder, *arguments) as (sweep, lines):
        assert any("step 8: val ap" in line for line in lines)  # after 4 of 12 epochs
        sweep.send_signal(how)
        assert sweep.wait(120) == code
        if last:
            rest = list(lines)
            assert rest[-1].startswith(last) and not any("Traceback" in line for line in rest)
    until = time.monotonic() + 60
    while processes_of(folder) and time.monotonic() < until:
        time.sleep(0.5)
    assert processes_of(folder) == []
    done = run(folder, "tune", *arguments)
    figures = results(done)
    (trial,) = figures["trials"]
    assert (trial["epochs"], trial["status"]) == (12.0, "finished")
    printed = plain_lines(done.stderr)
    assert any("resuming after step" in line for line in printed)
    assert not any("step 2: val ap" in line for line in printed)  # trained before, and not again
    runs = connect(figures["tracking_uri"]).search_runs(["1"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    # A finished sweep is only extended by more trials.
    again = run(folder, "tune", *arguments)
    assert again.returncode == 2 and "raise sweep.trials to extend it" in again.stderr
    if how == signal.SIGTERM:
        more = results(run(folder, "tune", *arguments, "--sweep.trials", "2"))["trials"]
        assert {row["name"] for row in more} == {"t0001", "t0002"} and trial in more


def test_two_sweeps_at_once_stop_their_trials_early(folder: Path) -> None:
    small = ("--model.image_size", "64", "--train.epochs", "4", "--ray.cpus_per_worker", "0.4")
    more = ("--sweep.trials", "5", "--sweep.concurrency", "1", "--sweep.confirm.points", "0")
    arguments = ("--config", "sweeps/smoke", *small, *more, "--tracking.uri")
    with (
        started(folder, *arguments, f"sqlite:///{folder}/a.db", "--run", "a") as (one, its_lines),
        started(folder, *arguments, f"sqlite:///{folder}/b.db", "--run", "b") as (two, others),
    ):
        printed = [*its_lines, *others]
        assert (one.wait(300), two.wait(300)) == (0, 0)
    assert not [line for line in printed if "Traceback" in line or "ray::" in line]
    for name in ("a", "b"):
        files = sorted((folder / "runs" / name / "trials").glob("*.json"))
        states = [yaml.safe_load(file.read_text())["state"] for file in files]
        assert len(states) == 5 and set(states) == {"finished", "stopped early"}


def test_sweep_in_an_object_store_is_stopped_and_resumed(folder: Path) -> None:
    """The address has options, as those of stores beside AWS do."""
    with s3_server() as uri:
        small = ("--model.image_size", "64", "--train.epochs", "10", "--sweep.trials", "1")
        alone = ("--sweep.confirm.points", "0", "--run", "search")
        arguments = ("--config", "sweeps/smoke", *small, "--ray.storage", uri, *alone)
        with started(folder, *arguments) as (sweep, lines):
            assert any("step 4: val ap" in line for line in lines)  # after 2 of 10 epochs
            sweep.send_signal(signal.SIGTERM)
            assert sweep.wait(120) == 143
        done = run(folder, "tune", *arguments)
        figures = results(done)
        printed = plain_lines(done.stderr)
        assert any("resuming after step" in line for line in printed)
        assert not any("step 2: val ap" in line for line in printed)
        (trial,) = figures["trials"]
        assert (trial["epochs"], trial["status"]) == (10.0, "finished")
        assert figures["best_yaml"] == str(folder / "search-best.yaml")
        stored = Storage(join(uri, "search"))
        assert stored.read("best.yaml") == (folder / "search-best.yaml").read_bytes()
        assert "trials" in stored.folders() and "t0001" in stored.folders()
