"""Relative paths of weights in a search space, also in folders of earlier versions."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model import build_detector
from pipeline.config import Config
from pipeline.sweep.paths import absolute_search
from pipeline.sweep.sweep import sweep
from pipeline.tracking import create_run
from pipeline.training.fit import absolute_paths
from pipeline.training.run_record import RunRecord
from pipeline.trials.trial_records import TrialRecord, TrialRecords

SPACE = {"model.init": {"choice": [None, "a.pth"]}}


@pytest.fixture
def search(small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return a grid over no weights and those of a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    detector = build_detector(**small.model.network(), num_classes=3)
    torch.save(detector.state_dict(), "a.pth")
    return small.replace(
        {"sweep.space": SPACE, "sweep.searcher": "grid", "sweep.trials": 2, "ray.enabled": True}
    )


def suggested(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the trials that a sweep gives to Tune."""
    found: list[dict[str, Any]] = []

    def run_trials(_settings: object, searcher: Any, *_: Any) -> None:
        found.extend(searcher.suggest(str(number)) for number in range(2))
        raise KeyboardInterrupt

    module = sys.modules[sweep.__module__]  # the package has a function of that name
    monkeypatch.setattr(module, "run_trials", run_trials)
    monkeypatch.setattr(module, "ray_cluster", lambda *_, **__: contextlib.nullcontext())
    with pytest.raises(KeyboardInterrupt):
        sweep(config, run="one")
    return found


def test_trials_get_absolute_paths(search: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    found = suggested(search, monkeypatch)
    path = str(Path("a.pth").absolute())
    assert [trial["params"]["model.init"] for trial in found] == [None, path]
    assert suggested(search, monkeypatch) == found  # resumed


def test_sweep_that_recorded_relative_paths_is_resumed(
    search: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = absolute_paths(search)
    assert former.sweep.space == SPACE
    record = RunRecord(former.ray.storage_uri(), "one")
    record.check_storage()
    record.write(create_run(str(former.tracking.uri), former, "one"), "stopped", former)
    failed = TrialRecord(name="t0001", params={"model.init": "a.pth"}, state="failed")
    TrialRecords(record.uri).save(failed)
    path = str(Path("a.pth").absolute())
    assert suggested(search, monkeypatch) == [
        {"name": "t0001", "params": {"model.init": path}},
        {"name": "t0002", "params": {"model.init": None}},
    ]


def test_names_and_addresses_stay_and_conditions_follow() -> None:
    values = ["imagenet", "models:/a@b", "s3://b/run", "runs/a"]
    path = str(Path("runs/a").absolute())
    space = {
        "model.init": {"choice": values},
        "train.lr": {"uniform": [0.1, 0.2], "when": {"model.init": "runs/a"}},
    }
    points = [{"model.init": "runs/a", "train.lr": 0.1}]
    found = absolute_search(Config.from_dict({"sweep": {"space": space, "points": points}})).sweep
    assert found.space["model.init"]["choice"] == [*values[:3], path]
    assert found.space["train.lr"] == {"uniform": [0.1, 0.2], "when": {"model.init": path}}
    assert found.points == [{"model.init": path, "train.lr": 0.1}]
