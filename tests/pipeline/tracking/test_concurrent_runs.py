"""Trials of a sweep create their runs in one sqlite file and log to it at the same time."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.tracking import connect, create_run
from tests.jobs.commands import ROOT
from tests.stores import new_store, points

PROCESSES, STEPS = 3, 60
TRIAL = """
import sys
from pathlib import Path
from pipeline.config import Config
from pipeline.tracking import Tracker, create_run, finish_run
uri, parent, name, folder = sys.argv[1:]
spool = Path(folder, name)
run_id = create_run(uri, Config(), name, {"trial": name}, parent, None, spool)
tracker = Tracker(uri, run_id, spool)
for step in range(int(sys.stdin.readline())):
    tracker.log_metrics({"train/loss": float(step), "train/lr": 0.1}, step)
    if step % 10 == 9:
        tracker.set_tag("step", str(step))
assert tracker.close(300.0, last=False)
finish_run(uri, run_id, spool, "FINISHED")
"""


@pytest.mark.integration
@pytest.mark.timeout(700)
def test_concurrent_trials_lose_nothing_and_print_nothing(tmp_path: Path) -> None:
    uri = new_store(tmp_path / "store")
    parent = create_run(uri, Config(), "sweep")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRIAL, uri, parent, f"t{number}", str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(f"{STEPS}\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, printed
    assert not any("locked" in text or "Traceback" in text for text in printed)
    client = connect(uri)
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.mlflow.parentRunId = '{parent}'"
    runs = client.search_runs([experiment], filter_string=query)
    assert sorted(run.data.tags["trial"] for run in runs) == [f"t{n}" for n in range(PROCESSES)]
    for run in runs:
        assert run.info.status == "FINISHED" and run.data.tags["step"] == str(STEPS - 1)
        logged = sorted(points(client, run.info.run_id, "train/loss"))
        assert logged == [(step, float(step)) for step in range(STEPS)]
