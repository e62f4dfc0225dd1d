"""A sweep in a real cluster, one of whose trials is killed again and again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
import yaml

from pipeline.config import Config
from pipeline.distributed.ray_cluster import ray_cluster
from pipeline.errors import TrainingFailed
from pipeline.storage.lease.fence import LEASE_FILE
from pipeline.sweep import sweep
from pipeline.training.error_hints import LOST_PROCESS
from pipeline.trials.trial_records import TrialRecord

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FREE_SECONDS = 10.0
GRACE = 3  # epochs after which a trial pauses


def descendants() -> list[tuple[int, str]]:
    """Return the ids and names of the processes below this one."""
    parents, found = {}, [os.getpid()]
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdecimal():
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                parents[int(path.name)] = int(stat[1])
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    names = []
    for process in found:
        with contextlib.suppress(OSError):
            names.append((process, Path(f"/proc/{process}/cmdline").read_text()))
    return names


class Watcher(threading.Thread):
    """Kills the first trial twice.

    First a worker is killed, then the process that Ray Tune runs, both after new evaluations.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.ended = folder, threading.Event()
        self.killed: list[str] = []  # owners of the lease of the trial
        self.resumed_from: set[str] = set()  # checkpoints

    def run(self) -> None:
        while not self.ended.wait(0.1):
            record = self.records().get("t0001")
            if record is not None and record.scores and len(self.killed) < 2:
                self.kill()

    def records(self) -> dict[str, TrialRecord]:
        files = (self.folder / "trials").glob("*.json")
        found = [TrialRecord.parse(file.read_bytes(), file.name) for file in files]
        return {record.name: record for record in found}

    def kill(self) -> None:
        trial = self.folder / "t0001"
        lease = json.loads((trial / LEASE_FILE).read_text())
        checkpoints = {path.parent.name for path in trial.glob("step-*/meta.json")}
        if lease["owner"] in self.killed or lease["released"]:
            self.resumed_from = checkpoints
        elif checkpoints > self.resumed_from:
            workers = [process for process, name in descendants() if "RayTrainWorker" in name]
            function = int(re.findall(r"process (\d+) on", lease["holder"])[0])
            os.kill(function if self.killed else workers[0], signal.SIGKILL)
            self.killed.append(lease["owner"])


def test_killed_trial_is_retried_and_the_others_end(
    small: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = small.replace(
        {
            "train.epochs": 10,
            "train.keep_checkpoints": 10,
            "data.test": None,
            "evaluate.pictures": 0,
            "ray.enabled": True,
            # Too few for two trials at once, which Ray Tune alone would start.
            "ray.cpus_per_worker": (os.cpu_count() or 1) * 0.75,
            "ray.max_failures": 0,
            "sweep.searcher": "grid",
            "sweep.retries": 1,
            "sweep.grace_epochs": GRACE,
            "sweep.confirm.points": 0,
            "sweep.space": {"train.lr": {"grid": [0.01, 0.02]}},
        }
    )
    watcher = Watcher(tmp_path / "runs" / "search")
    with ray_cluster(config.ray, sweep=True):
        watcher.start()
        try:
            with pytest.raises(TrainingFailed) as end:
                sweep(config, run="search")
        finally:
            watcher.ended.set()
            watcher.join()
        until = time.monotonic() + FREE_SECONDS
        while (free := ray.available_resources().get("CPU", 0.0)) < (os.cpu_count() or 1):
            assert time.monotonic() < until, free
            time.sleep(0.2)
    records, printed = watcher.records(), capfd.readouterr().err
    print(printed)
    # The killed trial resumes from its checkpoint, then counts out.
    record = records["t0001"]
    resumed = re.findall(r"^trial t0001: .*resuming after step (\d+)$", printed, re.M)
    assert len(watcher.killed) == 2 and len(resumed) == 1 and int(resumed[0]) >= 5
    reason = re.escape(LOST_PROCESS)
    assert re.search(
        f"^trial t0001 is retried after: rank 0 failed: its .* {reason}", printed, re.M
    )
    assert (record.state, record.error) == ("failed", f"its process {LOST_PROCESS}")
    # Not even an evaluation is lost whose worker was killed before it reported it.
    epochs = [epoch for epoch, _ in record.scores]
    assert len(epochs) >= int(resumed[0]) // 5 - 1
    assert epochs == [float(epoch) for epoch in range(1, len(epochs) + 1)]
    # The other one is paused, promoted and trained to its end.
    lines = re.findall(r"^trial t0002 (starts|resumes|is retried)", printed, re.M)
    assert lines[0] == "starts" and set(lines[1:]) == {"resumes"}
    assert [epoch for epoch, _ in records["t0002"].scores] == [float(n) for n in range(1, 11)]
    assert records["t0002"].state == "finished"
    message = f"1 of 2 trials failed, the first: t0001: {record.error}; "
    assert str(end.value).startswith(message) and "best.yaml is what the others" in str(end.value)
    assert yaml.safe_load((watcher.folder / "best.yaml").read_text())["train"]["lr"] == 0.02
