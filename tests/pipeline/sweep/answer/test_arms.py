"""Which points are confirmed, by which trainings, and how they compare."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.metrics.table import MatchTable
from pipeline.sweep.answer.arms import (
    chosen_arms,
    compare_arms,
    default_values,
    is_complete,
    trainings,
)
from pipeline.sweep.documents import DEFAULT, Trial
from pipeline.sweep.space import SearchSpace
from pipeline.trials.given import GivenTrials
from pipeline.trials.trial_records import TrialRecord, TrialRecords, TrialState
from tests.pipeline.sweep.answer.outcomes import outcome_of, table_of

CONFIG = Config.from_dict(
    {
        "train": {"lr": 0.03, "seed": 4},
        "sweep": {
            "confirm": {"points": 2, "seeds": 2},
            "space": {
                "train.lr": {"uniform": [0.01, 0.1]},
                "assign.name": {"choice": ["max_iou", "mutual_guidance"]},
                "assign.sigma": {"uniform": [1.5, 3.0]},
            },
        },
    }
)


def trial(name: str, lr: float, status: TrialState = "finished") -> Trial:
    return Trial(name, {"train.lr": lr}, 0.5, 3.0, status, None)


def records(**states: TrialState) -> TrialRecords:
    found = TrialRecords("/nowhere")
    for name, state in states.items():
        found.all[name] = TrialRecord(name=name, params={}, state=state)
    return found


def test_point_that_writes_out_a_default_is_the_default() -> None:
    config = CONFIG.replace({"assign.name": "mutual_guidance_soft"})
    same = Trial("t0001", {"assign.topk": 15}, 0.5, 3.0, "finished", None)
    assert chosen_arms(config, [same], records()) == {}


def test_best_finished_points_and_the_recipe_are_confirmed() -> None:
    trials = [
        trial("t0003", 0.03),  # the recipe itself
        trial("t0001", 0.02),
        trial("t0004", 0.04, "stopped early"),
        trial("t0005", 0.05),
        trial("t0006", 0.06),
        trial("t0007", 0.07),
    ]
    chosen = chosen_arms(CONFIG, trials, records())
    assert chosen == {DEFAULT: {}, "t0001": {"train.lr": 0.02}, "t0005": {"train.lr": 0.05}}
    # A point that was confirmed before the search went further stays in the comparison.
    before = records(**{"default-seed5": "finished", "t0007-seed5": "finished"})
    assert [*chosen_arms(CONFIG, trials, before)] == [DEFAULT, "t0001", "t0005", "t0007"]
    assert chosen_arms(CONFIG, trials[:1], records()) == {}
    assert chosen_arms(CONFIG.replace({"sweep.confirm.points": 0}), trials, before) == {}


def test_all_arms_are_trained_on_the_same_seeds_which_the_search_has_not_seen() -> None:
    planned = trainings(CONFIG, {DEFAULT: {}, "t0001": {"train.lr": 0.02}})
    assert planned == {
        "default-seed5": {"train.seed": 5},
        "t0001-seed5": {"train.lr": 0.02, "train.seed": 5},
        "default-seed6": {"train.seed": 6},
        "t0001-seed6": {"train.lr": 0.02, "train.seed": 6},
    }


def test_confirmation_that_was_killed_trains_nothing_twice() -> None:
    arms = {DEFAULT: {}, "t0001": {"train.lr": 0.02}}
    known = records(
        **{"default-seed5": "finished", "t0001-seed5": "unfinished", "default-seed6": "failed"}
    )
    assert not is_complete(CONFIG, arms, known)
    queue = GivenTrials(trainings(CONFIG, arms), known)
    started = []
    while not queue.is_exhausted():
        started.append(queue.suggest("")["name"])
    assert started == ["t0001-seed5", "default-seed6", "t0001-seed6"]
    done = records(**dict.fromkeys(trainings(CONFIG, arms), "finished"))
    assert is_complete(CONFIG, arms, done)
    assert not is_complete(CONFIG.replace({"sweep.confirm.seeds": 3}), arms, done)


def test_default_is_shown_with_the_values_that_matter() -> None:
    assert default_values(CONFIG, SearchSpace(CONFIG)) == {
        "train.lr": 0.03,
        "assign.name": "mutual_guidance",
        "assign.sigma": CONFIG.assign.sigma,
    }
    other = CONFIG.replace({"assign.name": "max_iou"})
    assert "assign.sigma" not in default_values(other, SearchSpace(other))
    adamw = CONFIG.replace({"train.optimizer": "adamw", "train.lr": None})
    assert default_values(adamw, SearchSpace(adamw))["train.lr"] == 1e-3


def tables(shares: Sequence[float]) -> list[MatchTable]:
    return [table_of(share, seed) for seed, share in enumerate(shares)]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_arms_are_compared_over_images_and_seeds(mode: str) -> None:
    config = CONFIG.replace({"sweep.mode": mode})
    matches = {
        DEFAULT: tables([0.4, 0.5]),
        "t0001": tables([0.9, 0.8]),
        "t0002": tables([0.45, 0.45]),
    }
    arms = {DEFAULT: {"train.lr": 0.03}, "t0001": {"train.lr": 0.02}, "t0002": {"train.lr": 0.04}}
    outcomes = {
        name: outcome_of(ap50=0.1 * seed, seed=seed)
        for arm in arms
        for seed in (5, 6)
        for name in [f"{arm}-seed{seed}"]
    }
    ranked, pairs, spread = compare_arms(config, 1, arms, outcomes, matches)
    names = [arm.name for arm in ranked]
    assert names[0 if mode == "max" else -1] == "t0001"
    first = ranked[names.index("t0001")]
    assert (first.seeds, first.trials) == ([5, 6], ["t0001-seed5", "t0001-seed6"])
    assert first.score.value == pytest.approx(np.mean(first.scores))
    assert first.ap50 == pytest.approx(0.55)
    found = {(pair.candidate, pair.reference): pair for pair in pairs}
    assert set(found) - {("t0001", "t0002"), ("t0002", "t0001")} == {
        ("t0001", DEFAULT),
        ("t0002", DEFAULT),
    }
    gain = found["t0001", DEFAULT]
    assert gain.distinguishable and gain.low > 0
    assert not found["t0002", DEFAULT].distinguishable
    assert spread is not None and spread > 0
    one = {name: items[:1] for name, items in matches.items()}
    assert (
        compare_arms(config.replace({"sweep.confirm.seeds": 1}), 1, arms, outcomes, one)[2] is None
    )
