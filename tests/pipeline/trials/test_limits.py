"""Limits of a sweep end all of its trials."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.training.stop import StopSignal
from pipeline.trials.limits import Limits
from pipeline.trials.trial_records import TrialRecord, TrialRecords


def config(**settings: Any) -> Config:
    return Config.from_dict({"sweep": settings})


def test_limits_end_all_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = TrialRecords(str(tmp_path))
    records.save(TrialRecord(name="t0001", params={}).with_score(3.0, 0.5))
    assert not Limits(config(), records, StopSignal()).stop_all()
    limited = Limits(config(max_epochs=5), records, StopSignal())
    assert not limited.stop_all()
    records.save(TrialRecord(name="t0002", params={}).with_score(2.0, 0.5))
    assert limited.stop_all() and limited.reached() == "sweep.max_epochs 5"
    timed = Limits(config(max_hours=1), records, StopSignal())
    assert not timed.stop_all()
    monkeypatch.setattr("time.monotonic", lambda: timed._began + 3601)
    assert timed.reached() == "sweep.max_hours 1"
    stop = StopSignal()
    stop.request("stopped")
    assert Limits(config(), records, stop).stop_all()
