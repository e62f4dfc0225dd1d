"""Trials pause at rungs and the best are promoted, the same in a sweep that was resumed."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipeline.config import Config
from pipeline.sweep.halving import SuccessiveHalving, grace_epochs, rung_epochs
from pipeline.sweep.scheduler import RungScheduler
from pipeline.sweep.searcher import SpaceSearcher
from pipeline.sweep.space import SearchSpace
from pipeline.trials.trial_records import TrialRecord, TrialRecords

EPOCHS = 9


def config(**sweep: Any) -> Config:
    space = {"train.momentum": {"grid": [round(0.05 * number, 2) for number in range(16)]}}
    settings = {"grace_epochs": 1, "reduction": 3, "searcher": "grid", "space": space, **sweep}
    return Config.from_dict(
        {
            "train": {"epochs": EPOCHS, "warmup_steps": 30, "batch_size": 8},
            "evaluate": {"every": 1},
            "sweep": settings,
        }
    )


class Trial:
    """What the scheduler reads of a trial of Ray Tune."""

    def __init__(self, name: str) -> None:
        self.config = {"name": name}


class MemoryRecords(TrialRecords):
    """Records without their files, which take long to write durably."""

    def save(self, record: TrialRecord) -> None:
        self.all[record.name] = record


class Sweep:
    """A sweep whose trials run here, one epoch after the other, instead of in Ray Tune."""

    def __init__(
        self, concurrency: int = 1, records: TrialRecords | None = None, **settings: Any
    ) -> None:
        self.config = config(**settings)
        self.records = records or MemoryRecords("/nowhere")
        halving = SuccessiveHalving(
            rung_epochs(self.config, 80), self.config.sweep, self.records, lambda name: True
        )
        space = SearchSpace(self.config)
        self.searcher = SpaceSearcher(space, self.config.sweep, self.records, halving)
        self.scheduler = RungScheduler(halving, "val/ap")
        self.concurrency, self.count, self.epochs = concurrency, 0, 0
        self.running: dict[str, str] = {}
        self.events: list[str] = []

    def run(self, *, kill_after: int = 10**6) -> None:
        while self.epochs < kill_after:
            while len(self.running) < self.concurrency:
                self.count += 1
                found = self.searcher.suggest(f"id{self.count}")
                if found == Searcher.FINISHED:
                    assert not self.running
                    return
                if found is None:
                    assert self.running
                    break
                self.running[found["name"]] = f"id{self.count}"
            for name in list(self.running):
                if self.epochs < kill_after:
                    self.train(name)

    def train(self, name: str) -> None:
        """Train one epoch; its score is known before the sweep decides."""
        record = self.records.all[name]
        epoch = record.epochs + 1
        score = record.params["train.momentum"] + 0.01 * epoch
        self.epochs += 1
        stops = self.scheduler.on_trial_result(None, Trial(name), {"epoch": epoch, "val/ap": score})
        state = "stopped early" if stops == TrialScheduler.STOP else "unfinished"
        state = "finished" if epoch == EPOCHS else state
        record = record.with_score(epoch, score).model_copy(update={"state": state})
        self.records.save(record)
        if state != "unfinished":
            self.events.append(f"{name} {state} after {epoch:g}")
            self.searcher.on_trial_complete(self.running.pop(name))


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_best_point_is_trained_to_its_end_in_a_third_of_the_epochs(
    concurrency: int,
) -> None:
    sweep = Sweep(concurrency)
    sweep.run()
    finished = [one for one in sweep.records.all.values() if one.state == "finished"]
    assert max(one.params["train.momentum"] for one in finished) == 0.75
    assert len(sweep.records.all) == 16
    # The best third, rounded: 5 of 16 beyond the first rung, and 2 of these to the end.
    assert len(finished) == 2
    assert sum(one.epochs > 1 for one in sweep.records.all.values()) == 5
    assert sweep.epochs <= 16 * EPOCHS * 0.35
    # Each epoch is trained once.
    assert sweep.epochs == sum(len(one.scores) for one in sweep.records.all.values())


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_resumed_sweep_trains_what_a_whole_one_trains(cut: int) -> None:
    whole = Sweep()
    whole.run()
    first = Sweep()
    first.run(kill_after=cut)
    rest = Sweep(records=first.records)
    rest.run()
    assert first.events + rest.events == whole.events
    assert first.epochs + rest.epochs == whole.epochs
    assert rest.records.all == whole.records.all


def test_trial_that_was_killed_between_its_score_and_its_pause_is_paused() -> None:
    records = MemoryRecords("/nowhere")
    for number in range(1, 4):
        record = TrialRecord(name=f"t000{number}", params={"train.momentum": 0.1})
        records.save(record.with_score(1.0, 0.1 * number))
    settings = config().sweep
    halving = SuccessiveHalving([1, 3], settings, records)
    assert {one.state for one in records.all.values()} == {"stopped early"}
    assert halving.promote([], lambda: True) == "t0003"
    assert halving.promote(["t0003"], lambda: True) is None


def test_few_trials_are_compared_and_one_is_trained_to_its_end() -> None:
    space = {"train.momentum": {"grid": [0.1, 0.3, 0.2]}}
    sweep = Sweep(reduction=4, space=space, grace_epochs=2)
    sweep.run()
    assert sweep.events == [
        *(f"t000{number} stopped early after 2" for number in (1, 2, 3)),
        "t0002 stopped early after 8",
        "t0002 finished after 9",
    ]


@pytest.mark.parametrize("limit", [{"max_hours": 1.0}, {"max_epochs": 500.0}])
def test_sweep_with_a_limit_promotes_before_it_tries_new_points(
    limit: dict[str, float],
) -> None:
    first = [f"t000{number} stopped early after 1" for number in (1, 2, 3)]
    space = {"train.momentum": {"grid": [0.3, 0.1, 0.2, 0.0]}}
    free = Sweep(space=space)
    free.run()
    assert free.events[:4] == [*first, "t0004 stopped early after 1"]
    limited = Sweep(space=space, **limit)
    limited.run()
    assert limited.events[:4] == [*first, "t0001 stopped early after 3"]


def test_more_trials_promote_more_of_those_that_have_paused() -> None:
    values = [0.7, 0.6, 0.1]
    first = Sweep(space={"train.momentum": {"grid": values}})
    first.run()
    more = {"train.momentum": {"grid": [*values, 0.0, 0.05, 0.15]}}
    extended = Sweep(records=first.records, space=more)
    extended.run()
    assert "t0002 stopped early after 3" in extended.events
    assert not any(event.startswith("t0001") for event in extended.events)  # it has finished


def test_trials_without_a_checkpoint_and_failed_ones_are_not_promoted() -> None:
    records = MemoryRecords("/nowhere")
    for number, state in enumerate(("stopped early", "failed", "stopped early"), 1):
        record = TrialRecord(name=f"t000{number}", params={}).with_score(1.0, number / 10)
        records.save(record.model_copy(update={"state": state}))
    settings = config(reduction=2).sweep
    with_all = SuccessiveHalving([1], settings, records)
    assert with_all.promote([], lambda: True) == "t0003"
    pruned = SuccessiveHalving([1], settings, records, lambda name: name != "t0003")
    assert pruned.promote([], lambda: True) is None  # the best counts, but cannot resume


@pytest.mark.parametrize("mode", ["max", "min"])
def test_order_of_trials_follows_the_mode_and_the_best_score_so_far(
    mode: str,
) -> None:
    records = MemoryRecords("/nowhere")
    curves = ([0.5, 0.1], [0.4, 0.3], [0.3, 0.4])
    for number, curve in enumerate(curves, 1):
        record = TrialRecord(name=f"t000{number}", params={}, state="stopped early")
        for epoch, score in enumerate(curve, 1):
            record = record.with_score(float(epoch), score)
        records.save(record)
    halving = SuccessiveHalving([2], config(mode=mode).sweep, records)
    assert halving.promote(["t0004"], lambda: False) is None  # more are to come
    assert halving.promote([], lambda: True) == "t0001"


def test_rung_is_compared_once_all_trials_have_reached_it_or_earlier_with_a_limit() -> None:
    records = MemoryRecords("/nowhere")
    for number in range(1, 5):
        record = TrialRecord(name=f"t000{number}", params={})
        records.save(record if number == 4 else record.with_score(1.0, 0.1 * number))
    waiting = SuccessiveHalving([1, 3], config().sweep, records)
    assert waiting.promote(["t0004"], lambda: True) is None
    limited = SuccessiveHalving([1, 3], config(max_hours=1.0).sweep, records)
    assert limited.promote(["t0004"], lambda: True) == "t0003"


def test_late_evaluations_decide_at_the_rung_they_have_passed() -> None:
    records = MemoryRecords("/nowhere")
    for name in ("t0001", "t0002"):
        records.save(TrialRecord(name=name, params={}))
    halving = SuccessiveHalving([1, 3], config().sweep, records)
    assert halving.pauses("t0001", 2.5, 0.5)
    records.save(records.all["t0001"].with_score(2.5, 0.5))
    assert halving.promote([], lambda: True) == "t0001"
    assert not halving.pauses("t0001", 2.5, 0.6)  # evaluated again after a resume
    assert halving.pauses("t0001", 5.0, 0.6)
    assert not halving.pauses("t0002", 0.5, 0.9)


def test_first_decision_follows_the_longest_warm_up_and_a_share_of_the_epochs() -> None:
    unset = {"grace_epochs": None, "grace_share": 0.25}
    assert grace_epochs(config(), 80) == 1
    assert grace_epochs(config(**unset), 80) == 3  # 30 steps of warm-up
    assert grace_epochs(config(**unset), 800) == 3  # a quarter of 9 epochs
    assert grace_epochs(config(**{**unset, "grace_share": 0.0}), 8000) == 1
    every = config(**unset).replace({"evaluate.every": 4.0})
    assert grace_epochs(every, 80) == 4
    longer = {"train.warmup_steps": {"int": [10, 50]}, "train.batch_size": {"choice": [8, 4]}}
    assert grace_epochs(config(**unset, space=longer), 80) == 5


def test_trainings_that_are_too_short_are_not_stopped_early(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for settings in ({"grace_epochs": EPOCHS}, {"grace_epochs": None, "grace_share": 1.0}):
        assert rung_epochs(config(**settings), 80) == []
        assert "no trial is stopped early" in capsys.readouterr().err
    assert rung_epochs(config(scheduler="none"), 80) == []
    assert rung_epochs(config(), 80) == [1, 3]
    assert capsys.readouterr().err == ""


def test_search_learns_the_last_score_of_a_promoted_trial_once() -> None:
    space = {"train.momentum": {"uniform": [0, 0.8]}}
    sweep = Sweep(searcher="tpe", trials=6, space=space)
    sweep.run()
    assert any(len(one.scores) > 3 for one in sweep.records.all.values())
    learned = [one.value for one in sweep.searcher._study.trials if one.value is not None]
    assert sorted(learned) == sorted(one.best("max") for one in sweep.records.all.values())  # type: ignore[type-var]


def test_rungs_are_those_of_a_training_with_a_minimum_of_steps() -> None:
    lengthened = config().replace({"train.min_steps": 300})  # 30 epochs of 80 images
    assert rung_epochs(config(), 80) == [1, 3]
    assert rung_epochs(lengthened, 80) == [1, 3, 9, 27]
