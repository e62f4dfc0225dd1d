"""The statement of a sweep: the winner, and what is noise."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import pytest

from pipeline.comparison.documents import Pair
from pipeline.metrics.bootstrap import Interval
from pipeline.sweep.answer.statement import compared, one_seed
from pipeline.sweep.documents import DEFAULT, Arm, Statement, Trial


def arm(name: str, score: float, seeds: Sequence[int] = (1, 2)) -> Arm:
    names = [f"{name}-seed{seed}" for seed in seeds]
    interval = Interval(score, score - 0.02, score + 0.02)
    return Arm(name, {"train.lr": 0.1}, [*seeds], names, [score] * len(seeds), interval, 0.7, 0.3)


def statement(
    scores: dict[str, float],
    half_width: float = 0.05,
    mode: Literal["max", "min"] = "max",
    spread: float | None = 0.01,
    seeds: Sequence[int] = (1, 2),
    left_out: Sequence[str] = (),
) -> Statement:
    """Return the statement about arms with these scores, all of whose gains are as uncertain."""
    sign = -1 if mode == "max" else 1
    names = sorted(scores, key=lambda name: sign * scores[name])
    points = [name for name in names if name != DEFAULT]
    against = [(name, DEFAULT) for name in points if DEFAULT in names]
    pairs = []
    for one, other in (*against, *combinations(points, 2)):
        gain = scores[one] - scores[other]
        low, high = gain - half_width, gain + half_width
        pairs.append(Pair(one, other, gain, low, high, low > 0 or high < 0))
    arms = [arm(name, scores[name], seeds) for name in names]
    return compared("val/ap", mode, 200, arms, pairs, spread, left_out)


def test_best_point_beyond_noise_wins() -> None:
    found = statement({DEFAULT: 0.4, "t0001": 0.5, "t0002": 0.47, "t0003": 0.43})
    assert (found.winner, found.confirmed) == ("t0001", True)
    assert found.sentences == [
        "best.yaml is t0001: val/ap 0.5000, better than the default (0.4000) beyond noise.",
        "t0001 against the default: +0.1000, 95% interval +0.0500 to +0.1500, distinguishable from "
        "noise.",
        "t0002 against the default: +0.0700, 95% interval +0.0200 to +0.1200, distinguishable from "
        "noise.",
        "t0003 against the default: +0.0300, 95% interval -0.0200 to +0.0800, not distinguishable "
        "from noise.",
        "t0001 against t0002: +0.0300, 95% interval -0.0200 to +0.0800, not distinguishable from "
        "noise.",
        "t0001 against t0003: +0.0700, 95% interval +0.0200 to +0.1200, distinguishable from "
        "noise.",
        "t0002 against t0003: +0.0400, 95% interval -0.0100 to +0.0900, not distinguishable from "
        "noise.",
        "Each was trained on 2 further seeds (1, 2) and scored on 200 images; the search and its "
        "seed do not count. Over seeds, val/ap has a standard deviation of 0.0100, estimated with "
        "4 degrees of freedom; intervals cover images and seeds.",
    ]
    assert Statement.parse(found.encode(), "statement.json") == found


def test_default_wins_when_nothing_beats_it() -> None:
    found = statement({DEFAULT: 0.4, "t0001": 0.44, "t0002": 0.2})
    assert found.winner == DEFAULT
    assert found.sentences[0] == (
        "best.yaml is the default: no point scores better than the recipe without the sweep "
        "(val/ap 0.4000) beyond noise."
    )
    pair = found.pair("t0002")
    assert pair is not None and pair.distinguishable  # but worse


def test_lower_is_better_if_the_recipe_says_so() -> None:
    assert statement({DEFAULT: 0.4, "t0001": 0.5, "t0002": 0.3}, mode="min").winner == "t0002"
    assert statement({DEFAULT: 0.4, "t0001": 0.5}, mode="min").winner == DEFAULT


def test_one_further_seed_says_nothing_about_seeds() -> None:
    found = statement({DEFAULT: 0.4, "t0001": 0.5}, spread=None, seeds=[1])
    assert "intervals are about the choice of images only" in found.sentences[-1]
    assert "raise sweep.confirm.seeds" in found.sentences[-1]


def test_failed_training_is_named() -> None:
    why = "default is not compared: default-seed1 did not finish (the loss is not finite)."
    found = statement({"t0001": 0.5, "t0002": 0.6}, left_out=[why])
    assert found.winner == "t0002" and why in found.sentences
    assert "the default could not be trained" in found.sentences[0]


def test_one_seed_proves_nothing() -> None:
    best = Trial("t0004", {"train.lr": 0.1}, 0.54, 3.0, "finished", None)
    found = one_seed("val/ap", "max", best, 8, "Why.")
    assert (found.winner, found.confirmed, found.arms) == ("t0004", False, [])
    assert found.sentences == [
        "One seed proves nothing: t0004 has the best val/ap, 0.5400, of 8 trials, but the best of "
        "several trials is partly luck.",
        "Why.",
    ]
    cut = one_seed("val/ap", "max", replace(best, status="unfinished"), 8, "Why.")
    assert "t0004 (unfinished after 3 epochs) has the best val/ap" in cut.sentences[0]


@pytest.mark.parametrize("name", ["t0001", DEFAULT])
def test_arms_are_found_by_name(name: str) -> None:
    found = statement({DEFAULT: 0.4, "t0001": 0.5}).arm(name)
    assert found is not None and found.name == name
