"""ASHA decides the same in a sweep that was resumed, and the limits of a sweep hold."""

from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pipeline.config import Config
from pipeline.sweep.scheduler import build_scheduler, grace_epochs
from pipeline.trials.trial_records import TrialRecord, TrialRecords

EPOCHS = 8


class Trial:
    """What ASHA reads of a trial of Ray Tune."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.config = f"id of {name}", {"name": name}


def config(**sweep: Any) -> Config:
    return Config.from_dict(
        {"train": {"epochs": EPOCHS, "warmup_steps": 30}, "sweep": {"grace_epochs": 1, **sweep}}
    )


def scores(name: str, epoch: int) -> float:
    return (int(name[1:]) * 37 % 11) / 11 + 0.01 * epoch


def run(folder: Path, names: list[str], epochs: range) -> list[str]:
    """Let trials report in turns; return those that are stopped, at which epoch."""
    records = TrialRecords(str(folder))
    records.load()
    for name in names:
        if name not in records.all:
            records.save(TrialRecord(name=name, params={}))
    scheduler = build_scheduler(config(), 10.0, records)
    running = {name: Trial(name) for name in names if records.all[name].state == "unfinished"}
    controller: Any = None
    for trial in running.values():
        scheduler.on_trial_add(controller, trial)
    stopped = []
    for epoch in epochs:
        for name, trial in list(running.items()):
            score = scores(name, epoch)
            records.save(records.all[name].with_score(epoch, score))
            result = {"epoch": float(epoch), "val/ap": score}
            if scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP:
                stopped.append(f"{name} at {epoch}")
                del running[name]
                ended = records.all[name].model_copy(update={"state": "stopped early"})
                records.save(ended)
    return stopped


@pytest.mark.parametrize("cut", range(2, EPOCHS))
def test_resumed_sweep_stops_the_trials_that_a_whole_one_stops(tmp_path: Path, cut: int) -> None:
    names = [f"t{number:04d}" for number in range(1, 9)]
    whole = run(tmp_path / "whole", names, range(1, EPOCHS + 1))
    assert 3 <= len(whole) < 8
    parts = run(tmp_path / "cut", names, range(1, cut))
    parts += run(tmp_path / "cut", names, range(cut, EPOCHS + 1))
    assert parts == whole


def test_first_decision_follows_the_warm_up_and_a_share_of_the_epochs() -> None:
    unset = {"grace_epochs": None}
    assert grace_epochs(config(), 10.0) == 1
    assert grace_epochs(config(**unset), 10.0) == 3  # 30 steps of warm-up
    assert grace_epochs(config(**unset), 100.0) == 2  # a quarter of 8 epochs
    assert grace_epochs(config(**unset, grace_share=0.0), 1000.0) == 1


def test_trainings_that_are_too_short_are_not_stopped_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = TrialRecords(str(tmp_path))
    for settings in ({"grace_epochs": EPOCHS}, {"grace_epochs": None, "grace_share": 1.0}):
        assert type(build_scheduler(config(**settings), 10.0, records)) is FIFOScheduler
        assert "no trial is stopped early" in capsys.readouterr().err
