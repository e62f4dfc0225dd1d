"""Points are tried once each, over any number of resumes, and the history is not lost."""

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.sweep.halving import SuccessiveHalving
from pipeline.sweep.searcher import SpaceSearcher
from pipeline.sweep.space import SearchSpace
from pipeline.trials.trial_records import TrialRecord, TrialRecords, TrialState

NECKS = {"model.neck": {"choice": ["fssd", "retinanet", "rfb"]}}
RATES = {"train.lr": {"uniform": [0.01, 1.0]}}


class Sweep:
    """A sweep whose trials are ended by the test instead of Ray Tune."""

    def __init__(self, folder: Path, space: dict[str, Any], **settings: Any) -> None:
        config = Config.from_dict({"sweep": {"space": space, **settings}})
        self.records = TrialRecords(str(folder))
        self.records.load()
        halving = SuccessiveHalving([], config.sweep, self.records)
        self.searcher = SpaceSearcher(SearchSpace(config), config.sweep, self.records, halving)
        self.count = 0

    def start(self) -> TrialRecord | None:
        self.count += 1
        found = self.searcher.suggest(f"id{self.count}")
        return None if found in (None, Searcher.FINISHED) else self.records.all[found["name"]]

    def end(self, record: TrialRecord, score: float, state: TrialState = "finished") -> None:
        self.records.save(record.with_score(1.0, score).model_copy(update={"state": state}))
        self.searcher.on_trial_complete(f"id{self.count}")

    def run(self, score: Any = lambda params: params["train.lr"]) -> list[TrialRecord]:
        started = []
        while (record := self.start()) is not None:
            self.end(record, score(record.params))
            started.append(record)
        return started


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_resumed_search_continues_with_the_points_of_a_whole_one(
    tmp_path: Path, searcher: str
) -> None:
    options = {"searcher": searcher, "seed": 3, "trials": 8}
    whole = Sweep(tmp_path / "whole", RATES, **options).run()
    assert len({str(record.params) for record in whole}) == 8
    first = Sweep(tmp_path / "cut", RATES, **{**options, "trials": 4}).run()
    assert [record.params for record in first] == [record.params for record in whole[:4]]
    rest = Sweep(tmp_path / "cut", RATES, **options).run()
    assert [record.name for record in rest] == ["t0005", "t0006", "t0007", "t0008"]
    if searcher == "random":
        assert [record.params for record in rest] == [record.params for record in whole[4:]]
    assert Sweep(tmp_path / "cut", RATES, **options).searcher.is_exhausted()


def test_tpe_learns_from_former_trials(tmp_path: Path) -> None:
    """The searcher of a resumed sweep draws near the best of the trials before."""

    def score(params: dict[str, Any]) -> float:
        return -abs(params["train.lr"] - 0.9)

    Sweep(tmp_path, RATES, trials=30, seed=0).run(score)
    rest = Sweep(tmp_path, RATES, trials=50, seed=1).run(score)
    near = [record for record in rest if record.params["train.lr"] > 0.7]
    assert len(rest) == 20 and len(near) > 12  # 6 expected by chance


def test_unfinished_and_failed_trials_come_first_under_their_names(tmp_path: Path) -> None:
    before = Sweep(tmp_path, RATES, trials=3)
    one, two, three = before.start(), before.start(), before.start()
    assert one and two and three
    before.records.save(one.with_score(2.0, 0.5))  # killed in mid-training
    before.records.save(two.model_copy(update={"state": "failed", "error": "lost"}))
    before.records.save(three.with_score(1.0, 0.1).model_copy(update={"state": "stopped early"}))
    after = Sweep(tmp_path, RATES, trials=3)
    started = [after.start(), after.start(), after.start()]
    assert started == [
        one.with_score(2.0, 0.5),
        two.model_copy(update={"state": "unfinished", "error": ""}),
        None,
    ]


def test_finite_space_is_searched_once(tmp_path: Path) -> None:
    tried = Sweep(tmp_path, NECKS, trials=50).run(lambda params: 0.5)
    assert sorted(record.params["model.neck"] for record in tried) == ["fssd", "retinanet", "rfb"]


def test_grid_is_tried_in_order_whatever_the_number_of_trials(tmp_path: Path) -> None:
    tried = Sweep(tmp_path, NECKS, trials=1, searcher="grid").run(lambda params: 0.5)
    assert [record.params["model.neck"] for record in tried] == ["fssd", "retinanet", "rfb"]


def test_given_points_come_first_and_are_completed(tmp_path: Path) -> None:
    points = [{"train.lr": 0.25}, {"model.neck": "rfb"}]
    tried = Sweep(tmp_path, RATES | NECKS, trials=3, points=points).run()
    assert tried[0].params["train.lr"] == 0.25 and tried[0].params["model.neck"]
    assert tried[1].params["model.neck"] == "rfb" and 0 <= tried[1].params["train.lr"] <= 1
    assert len(tried) == 3


def test_points_that_the_configuration_rejects_are_drawn_again(tmp_path: Path) -> None:
    thresholds = {
        "assign.pos_threshold": {"uniform": [0.1, 0.9]},
        "assign.ignore_threshold": {"uniform": [0.1, 0.9]},
    }
    tried = Sweep(tmp_path, thresholds, trials=20, searcher="random").run(lambda params: 0.5)
    assert len(tried) == 20
    assert all(
        record.params["assign.ignore_threshold"] <= record.params["assign.pos_threshold"]
        for record in tried
    )


def test_trial_without_a_score_is_not_learned_from(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, RATES, trials=2)
    record = sweep.start()
    assert record is not None
    sweep.searcher.on_trial_complete("id1", error=True)
    assert len(sweep.run()) == 1


def test_lost_record_neither_ends_nor_repeats_a_name(tmp_path: Path) -> None:
    Sweep(tmp_path, RATES, trials=3).run()
    (tmp_path / "trials" / "t0002.json").unlink()
    (tmp_path / "t0007").mkdir()  # a run whose record was lost
    more = Sweep(tmp_path, RATES, trials=4).run()
    assert [record.name for record in more] == ["t0008", "t0009"]


def test_long_random_sweep_can_be_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sweep.searcher.MAX_DRAWS", 5)
    Sweep(tmp_path, RATES, trials=20, searcher="random").run()
    assert len(Sweep(tmp_path, RATES, trials=25, searcher="random").run()) == 5


def test_all_points_of_a_finite_space_are_tried(tmp_path: Path) -> None:
    space = {"train.batch_size": {"int": [1, 40]}}
    tried = Sweep(tmp_path, space, trials=60, searcher="tpe").run(lambda params: 0.5)
    assert sorted(record.params["train.batch_size"] for record in tried) == list(range(1, 41))


def test_given_points_are_completed_with_valid_values_once(tmp_path: Path) -> None:
    space = {
        "assign.pos_threshold": {"uniform": [0.4, 0.7]},
        "assign.ignore_threshold": {"uniform": [0.3, 0.6]},
    }
    for seed in range(5):
        options = {"points": [{"assign.pos_threshold": 0.4}], "trials": 1, "seed": seed}
        (record,) = Sweep(tmp_path / str(seed), space, **options).run(lambda params: 0.5)
        assert record.params["assign.ignore_threshold"] <= record.params["assign.pos_threshold"]
        more = Sweep(tmp_path / str(seed), space, **{**options, "trials": 2})
        (other,) = more.run(lambda params: 0.5)
        assert other.params["assign.pos_threshold"] != 0.4  # drawn: the given point was tried


def test_grid_over_an_endless_range_is_rejected_before_a_trial(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the searcher grid needs a list"):
        Sweep(tmp_path, RATES, searcher="grid", points=[{"train.lr": 0.5}])
    assert not list(tmp_path.rglob("*.json"))
