"""The answer of a sweep, from the trainings in its folder."""

from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import TrainingFailed
from pipeline.metrics.bootstrap import Interval
from pipeline.storage.folder import join
from pipeline.sweep.answer import Answer, Confirmation, best_recipe, is_confirmed
from pipeline.sweep.documents import DEFAULT
from pipeline.sweep.results import against_default, best_figures, make_table
from pipeline.sweep.space import SearchSpace
from pipeline.trials.trial import TrialSettings
from pipeline.trials.trial_records import TrialRecord, TrialRecords, TrialState
from tests.pipeline.sweep.answer.outcomes import outcome_of, store, table_of

CONFIG = Config.from_dict(
    {
        "train": {"lr": 0.03},
        "sweep": {
            "confirm": {"points": 2, "seeds": 2},
            "space": {"train.lr": {"uniform": [0.01, 0.1]}},
        },
    }
)


class Sweep:
    """A sweep whose trials are stored as if they had been trained."""

    def __init__(self, folder: Path, config: Config = CONFIG) -> None:
        self.config, self.storage = config, str(folder)
        self.searched = TrialRecords(self.storage)

    def search(self, **scores: float) -> None:
        for number, (name, score) in enumerate(scores.items()):
            record = TrialRecord(name=name, params={"train.lr": [0.05, 0.06, 0.07][number]})
            self.searched.save(
                record.with_score(1.0, score).model_copy(update={"state": "finished"})
            )

    def confirm(self, name: str, share: float, state: TrialState = "finished") -> None:
        storage = join(self.storage, "confirm")
        records = TrialRecords(storage)
        record = TrialRecord(name=name, params={}, state=state, error="no" * (state == "failed"))
        records.save(record)
        store(storage, name, outcome_of(ap=share), table_of(share, seed=len(name)))

    def answer(self) -> Answer:
        settings = TrialSettings(
            config=self.config,
            sweep="search",
            storage=self.storage,
            tracking_uri="sqlite://",
            parent_run_id="a1",
        )
        confirmation = Confirmation(settings, SearchSpace(self.config), 1)
        names = [name for name, one in confirmation.records.all.items() if one.state == "finished"]
        confirmed = {name: outcome_of(ap=0.1 * number) for number, name in enumerate(names)}
        trials = make_table(self.config, self.searched)
        found = {name: outcome_of(ap=0.77) for name in self.searched.all}
        return confirmation.answer(trials, self.searched, found, confirmed)


@pytest.fixture
def swept(tmp_path: Path) -> Sweep:
    """Return a sweep in which the second best point is the one that holds on other seeds."""
    sweep = Sweep(tmp_path)
    sweep.search(t0001=0.7, t0002=0.6, t0003=0.5)
    for seed in (1, 2):
        sweep.confirm(f"default-seed{seed}", 0.4)
        sweep.confirm(f"t0001-seed{seed}", 0.4)
        sweep.confirm(f"t0002-seed{seed}", 0.95)
    return sweep


def test_winner_is_that_of_the_further_seeds_and_not_of_the_search(swept: Sweep) -> None:
    answer = swept.answer()
    statement = answer.statement
    assert statement.winner == "t0002" and statement.confirmed and statement.images == 40
    assert statement.arms[0].name == "t0002"
    assert answer.params == {"train.lr": 0.06}
    # The recipe repeats the training with the first of the further seeds.
    assert answer.repeated.name == "t0002-seed1"
    assert answer.repeated.params == {"train.lr": 0.06, "train.seed": 1}
    text = best_recipe(CONFIG, "search", statement, answer.repeated)
    assert "better than the default" in text and "gives val/ap 0.4000, exactly that" in text
    trials = make_table(CONFIG, swept.searched)
    best, gain = best_figures(trials, statement, answer.params), against_default(statement)
    arm = statement.arm("t0002")
    assert arm is not None and gain is not None
    assert best["ap"] == arm.score.value and best["params"] == {"train.lr": 0.06}
    assert best["interval"] == [arm.score.low, arm.score.high]
    assert gain["distinguishable"] and 0 < gain["low"] < gain["gain"] < gain["high"]
    assert is_confirmed(CONFIG, swept.storage, swept.searched)


def test_default_is_recommended_if_nothing_beats_it(swept: Sweep) -> None:
    for seed in (1, 2):
        swept.confirm(f"t0002-seed{seed}", 0.45)
    answer = swept.answer()
    assert (answer.statement.winner, answer.params) == (DEFAULT, {"train.lr": 0.03})
    assert answer.repeated.params == {"train.seed": 1}
    gain = against_default(answer.statement)
    assert gain is not None and not gain["distinguishable"]
    assert gain["name"] == answer.statement.arms[0].name or answer.statement.arms[0].name == DEFAULT


def test_point_with_a_failed_training_is_named_and_not_compared(swept: Sweep) -> None:
    swept.confirm("t0002-seed2", 0.0, "failed")
    statement = swept.answer().statement
    assert "t0002" not in [arm.name for arm in statement.arms]
    assert "t0002 is not compared: t0002-seed2 did not finish (no)." in statement.sentences
    assert not is_confirmed(CONFIG, swept.storage, swept.searched)


def test_search_alone_proves_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, CONFIG.replace({"sweep.confirm.points": 0}))
    sweep.search(t0001=0.7, t0002=0.6)
    answer = sweep.answer()
    statement = answer.statement
    assert (statement.winner, statement.confirmed) == ("t0001", False)
    assert statement.sentences[0].startswith("One seed proves nothing")
    assert "Set sweep.confirm.points" in statement.sentences[1]
    assert (answer.repeated.name, answer.repeated.score) == ("t0001", 0.77)
    assert against_default(statement) is None
    trials = make_table(sweep.config, sweep.searched, outcomes={"t0001": outcome_of(ap=0.7)})
    best = best_figures(trials, statement, answer.params)
    assert best["ap"] == 0.7 and best["interval"] == pytest.approx([0.6, 0.8])
    assert is_confirmed(sweep.config, sweep.storage, sweep.searched)


def test_sweep_without_a_score_fails(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    record = TrialRecord(name="t0001", params={}, state="failed", error="the loss is not finite")
    sweep.searched.save(record)
    with pytest.raises(TrainingFailed, match="no trial reported val/ap: the loss is not finite"):
        sweep.answer()


def test_table_has_the_figures_of_the_selected_checkpoint(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.search(t0001=0.7)
    outcome = outcome_of(ap=0.7, gain=Interval(0.1, 0.05, 0.15))
    (row,) = make_table(CONFIG, sweep.searched, outcomes={"t0001": outcome}, steps_per_epoch=10)
    assert (row.ap, row.ap50, row.ap75) == (0.7, 0.7, 0.4)
    assert (row.low, row.high) == pytest.approx((0.6, 0.8))
    assert row.seconds == 5.0  # 10 steps of half a second
    assert row.curve == [(1.0, 0.7)]
    assert row.postprocessing is not None and row.postprocessing.distinguishable
