"""Test the verdict of the gate on pairs whose difference is known."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import PromoteConfig
from pipeline.metrics import match_images, voc_metrics
from pipeline.promotion.gate import Subject, judge
from tests.pipeline.metrics.scenes import Scene, random_scenes

CLASSES = ["a", "b"]
CONFIG = PromoteConfig(resamples=200)
SCENES = random_scenes(0, 80, 2)


def subject(scenes: list[Scene], version: int = 2) -> Subject:
    return Subject(version, match_images(scenes), seconds_per_image=0.01, megabytes=10.0)


def rescored(every: int, label: int | None = None) -> list[Scene]:
    """Return the scenes with the scores of some images reversed in order, which lowers AP."""
    scenes = []
    for number, (name, truth, found) in enumerate(SCENES):
        scores = found.scores.copy()
        if number % every == 0:
            own = np.full(len(scores), True) if label is None else found.labels == label
            scores[own] = 1 - scores[own]
        scenes.append((name, truth, replace(found, scores=scores)))
    return scenes


def perfect(scenes: list[Scene]) -> list[Scene]:
    """Return the scenes with every object found."""
    kept = []
    for name, truth, found in scenes:
        boxes = truth.boxes.astype(np.float32)
        ones = np.ones(len(boxes), np.float32)
        kept.append((name, truth, replace(found, boxes=boxes, scores=ones, labels=truth.labels)))
    return kept


def test_better_model_passes_and_says_by_how_much() -> None:
    verdict = judge(subject(perfect(SCENES)), subject(SCENES, 1), CLASSES, CONFIG)
    assert verdict.passed
    assert verdict.gain is not None and verdict.gain.low > 0
    assert verdict.champion_ap is not None
    difference = verdict.candidate_ap.value - verdict.champion_ap.value
    assert verdict.gain.value == pytest.approx(difference)
    assert [item.name for item in verdict.classes] == CLASSES
    (reason,) = verdict.reasons
    assert f"AP rises by {verdict.gain.value:.4f}" in reason
    assert "seed" in verdict.notes[0]


def test_model_against_itself_is_refused() -> None:
    verdict = judge(subject(SCENES), subject(SCENES, 1), CLASSES, CONFIG)
    assert not verdict.passed
    assert verdict.gain is not None
    assert (verdict.gain.value, verdict.gain.low, verdict.gain.high) == (0.0, 0.0, 0.0)


def test_worse_model_is_named_worse_and_a_small_gain_noise() -> None:
    worse = judge(subject(SCENES), subject(perfect(SCENES), 1), CLASSES, CONFIG)
    assert not worse.passed and "the candidate is worse" in worse.reasons[0]
    noise = judge(subject(SCENES), subject(rescored(40), 1), CLASSES, CONFIG)
    assert not noise.passed and "may be noise" in noise.reasons[0]


def test_whole_interval_must_exceed_the_minimum_gain() -> None:
    pair = subject(perfect(SCENES)), subject(SCENES, 1)
    gain = judge(*pair, CLASSES, CONFIG).gain
    assert gain is not None
    for minimum, passed in ((gain.low - 0.001, True), (gain.value, False)):
        config = CONFIG.model_copy(update={"min_gain": minimum})
        assert judge(*pair, CLASSES, config).passed == passed


def test_class_that_loses_refuses_a_model_that_gains_overall() -> None:
    lost = [
        (name, truth, replace(found, scores=np.where(found.labels == 1, 0.0, found.scores)))
        for name, truth, found in perfect(SCENES)
    ]
    mixed = [
        (name, truth, replace(found, labels=np.where(found.labels == 1, 0, found.labels)))
        for name, truth, found in lost
    ]
    verdict = judge(subject(mixed), subject(SCENES, 1), CLASSES, CONFIG)
    assert not verdict.passed
    assert any("class b" in reason and "max_class_loss" in reason for reason in verdict.reasons)
    unlimited = CONFIG.model_copy(update={"max_class_loss": None})
    reasons = judge(subject(mixed), subject(SCENES, 1), CLASSES, unlimited).reasons
    assert not any("class b" in reason for reason in reasons)


def test_slow_and_large_models_are_refused_only_with_a_limit() -> None:
    slow = replace(subject(perfect(SCENES)), seconds_per_image=0.05, megabytes=99.0)
    champion = subject(SCENES, 1)
    verdict = judge(slow, champion, CLASSES, CONFIG)
    assert verdict.passed
    assert verdict.latency_ratio == pytest.approx(5.0)
    limits = CONFIG.model_copy(update={"max_latency_ratio": 2.0, "max_megabytes": 50.0})
    reasons = judge(slow, champion, CLASSES, limits).reasons
    assert len(reasons) == 2
    assert "5.00 times as long" in reasons[0] and "99.0 MB" in reasons[1]


def test_without_a_champion_a_minimum_decides() -> None:
    verdict = judge(subject(SCENES), None, CLASSES, CONFIG)
    assert verdict.passed and verdict.gain is None
    assert "there is no champion" in verdict.reasons[0]
    config = CONFIG.model_copy(update={"min_ap": verdict.candidate_ap.value})
    assert not judge(subject(SCENES), None, CLASSES, config).passed
    nothing = [
        (
            name,
            truth,
            replace(found, scores=found.scores[:0], boxes=found.boxes[:0], labels=found.labels[:0]),
        )
        for name, truth, found in SCENES
    ]
    refused = judge(subject(nothing), None, CLASSES, CONFIG)
    assert not refused.passed and "AP 0.0000 is not above" in refused.reasons[0]


@pytest.mark.parametrize(("protocol", "metric"), [("voc07", "voc07"), ("voc", "area")])
def test_voc_protocols_are_judged_by_their_own_ap(protocol, metric) -> None:
    better, worse = subject(perfect(SCENES)), subject(SCENES, 1)
    verdict = judge(better, worse, CLASSES, CONFIG, protocol)
    assert verdict.champion_ap is not None and verdict.passed
    for table, found in (
        (better.table, verdict.candidate_ap),
        (worse.table, verdict.champion_ap),
        (better.table, judge(better, None, CLASSES, CONFIG, protocol).candidate_ap),
    ):
        assert found.value == pytest.approx(voc_metrics(table, CLASSES, metric)["ap50"])
        assert found.low <= found.value <= found.high


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        judge(subject(SCENES), subject(SCENES[:40], 1), CLASSES, CONFIG)
