"""A sweep in a real cluster, one of whose trials is killed again and again and one not finite."""

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
from ray.util import placement_group_table

from pipeline.config import Config
from pipeline.distributed.ray_cluster import ray_cluster
from pipeline.errors import TrainingFailed
from pipeline.storage.lease.fence import LEASE_FILE
from pipeline.sweep import sweep
from pipeline.trials.trial_records import TrialRecord

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FREE_SECONDS = 10.0


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
    """Kills the promoted trial after each of its epochs, and notes when resources are free.

    The first time a worker is killed, then the process that Ray Tune runs.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.ended = folder, threading.Event()
        self.killed: list[tuple[str, float]] = []  # name and epochs
        self.freed: dict[str, float] = {}  # seconds after a trial was stopped early
        self.groups = 0

    def run(self) -> None:
        paused: dict[str, tuple[float, set[str]]] = {}
        while not self.ended.wait(0.1):
            used = {
                key for key, one in placement_group_table().items() if one["state"] == "CREATED"
            }
            self.groups = max(self.groups, len(used))
            for record in self.records():
                if record.state == "stopped early" and record.name not in paused:
                    paused[record.name] = time.monotonic(), used
                if record.state == "unfinished" and record.epochs >= 2 + len(self.killed):
                    self.kill(record)
            for name, (since, groups) in paused.items():
                if name not in self.freed and not groups & used:
                    self.freed[name] = time.monotonic() - since

    def records(self) -> list[TrialRecord]:
        files = sorted((self.folder / "trials").glob("*.json"))
        return [TrialRecord.parse(file.read_bytes(), file.name) for file in files]

    def kill(self, record: TrialRecord) -> None:
        if len(self.killed) == 2 or (self.killed and record.name != self.killed[0][0]):
            return
        if not self.killed:
            process = next(pid for pid, name in descendants() if "RayTrainWorker" in name)
        else:
            lease = json.loads((self.folder / record.name / LEASE_FILE).read_text())
            if lease["released"]:
                return
            process = int(re.findall(r"process (\d+) on", lease["holder"])[0])
        os.kill(process, signal.SIGKILL)
        self.killed.append((record.name, record.epochs))


def test_killed_trial_is_retried_and_the_others_end(
    small: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = small.replace(
        {
            "train.epochs": 5,
            "evaluate.pictures": 0,
            "ray.enabled": True,
            "ray.workers": 2,
            # Ray Tune alone would start all trials at once.
            "ray.cpus_per_worker": ((os.cpu_count() or 1) - 0.5) / 2,
            "ray.max_failures": 0,
            "sweep.searcher": "grid",
            "sweep.retries": 1,
            "sweep.grace_epochs": 1,
            "sweep.reduction": 4,
            "sweep.space": {"train.lr": {"grid": [0.01, 1e30, 0.02]}},
        }
    )
    watcher = Watcher(tmp_path / "runs" / "search")
    with ray_cluster(config.ray, sweep=True):
        watcher.start()
        try:
            with pytest.raises(
                TrainingFailed, match="2 of 3 trials failed, the first: t000"
            ) as end:
                sweep(config, run="search")
        finally:
            watcher.ended.set()
            watcher.join()
        free = ray.available_resources().get("CPU", 0.0)
    records = {record.name: record for record in watcher.records()}
    # A loss that is not finite fails the trial at once and is named.
    assert "is not finite at step" in records["t0002"].error
    # The promoted trial resumes from its checkpoint, then counts out.
    (killed, first), (again, second) = watcher.killed
    assert killed == again and (first, second) == (2.0, 3.0)
    assert records[killed].state == "failed" and records[killed].error
    # Then the other one is promoted and trained to its end.
    (other,) = {"t0001", "t0003"} - {killed}
    assert records[other].state == "finished"
    assert [epoch for epoch, _ in records[other].scores] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert "best.yaml is the best of the others" in str(end.value)
    assert f"trial {other} " in (tmp_path / "runs" / "search" / "best.yaml").read_text()[:200]
    # One trial at a time, each of which frees all of its resources within seconds.
    assert watcher.groups == 1
    assert watcher.freed.keys() == {"t0001", "t0003"}
    assert max(watcher.freed.values()) < FREE_SECONDS
    assert free == os.cpu_count()
    printed = capfd.readouterr().err
    starts = [
        line for line in printed.splitlines() if re.match(r"trial t\d+ (starts|resumes)", line)
    ]
    assert sum(line.startswith("trial t0002") for line in starts) == 1
    assert sum(line.startswith(f"trial {killed}") for line in starts) == 3
    print(printed)
