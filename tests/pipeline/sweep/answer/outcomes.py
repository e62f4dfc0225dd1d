"""Outcomes of trials, made without training."""

from dataclasses import fields

import numpy as np

from pipeline.evaluation.postprocessing.raw import RawPredictions
from pipeline.evaluation.postprocessing.settings import BestSettings, Settings, Tried
from pipeline.metrics import MatchTable, match_images
from pipeline.metrics.bootstrap import Interval
from pipeline.trials.outcome import TrialOutcome
from pipeline.trials.outcome_record import store_outcome
from tests.pipeline.metrics.scenes import detections, objects


def best_settings(gain: Interval) -> BestSettings:
    """Return a search in which a lower IoU of NMS has a gain."""
    before = Tried(Settings(0.5, class_agnostic=False, max_detections=100), {"ap": 0.5})
    best = Tried(Settings(0.4, class_agnostic=True, max_detections=100), {"ap": 0.5 + gain.value})
    return BestSettings(metric="ap", before=before, best=best, gain=gain)


def outcome_of(
    ap: float = 0.5, ap50: float = 0.7, seed: int = 0, gain: Interval | None = None
) -> TrialOutcome:
    """Return the outcome of a trial with these figures."""
    return TrialOutcome(
        checkpoint=f"step-{seed:08d}",
        step=10,
        epoch=2.0,
        weights_sha256="0" * 64,
        data="1" * 64,
        metric="ap",
        metrics={"ap": ap, "ap50": ap50, "ap75": 0.4},
        per_class={},
        low=ap - 0.1,
        high=ap + 0.1,
        seconds_per_step=0.5,
        health={},
        postprocessing=best_settings(gain or Interval(0.0, -0.01, 0.01)),
    )


def store(storage: str, name: str, outcome: TrialOutcome, matches: MatchTable) -> TrialOutcome:
    """Store an outcome with its matches, without predictions."""
    nothing = {field.name: np.zeros(0, np.int32) for field in fields(RawPredictions)}
    return store_outcome(storage, name, outcome, RawPredictions(**nothing), matches)


def table_of(share: float, seed: int = 0) -> MatchTable:
    """Return the matches of a detector that finds this share of the objects of 40 images."""
    box = (10.0, 10.0, 50.0, 50.0)
    hits = np.random.default_rng(seed).random(40) < share
    return match_images(
        (f"{n:03d}", objects([box], [0]), detections([box] * hit, [0.9] * hit, [0] * hit))
        for n, hit in enumerate(hits.astype(int))
    )
