"""The gate: whether a candidate has shown on the same images that it is better than the champion.

The AP of both is compared by a paired bootstrap over images, so the interval of the gain says how
much it would vary with other images of the same kind. It does not say how much it would vary with
another seed of the training, which `Verdict.notes` states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.config import PromoteConfig, Protocol
from pipeline.metrics import MatchTable
from pipeline.metrics.bootstrap import Gain, Interval, bootstrap, paired_bootstrap
from pipeline.metrics.table import IOU_THRESHOLDS

_AP50 = (0,)  # indices of IoU thresholds
_ALL_IOUS = tuple(range(len(IOU_THRESHOLDS)))


@dataclass(frozen=True)
class Subject:
    """What the gate knows of a version: its match table, speed and size."""

    version: int
    table: MatchTable
    seconds_per_image: float
    megabytes: float


@dataclass(frozen=True)
class ClassGain:
    """The gain of one class, and its number of objects that count."""

    name: str
    objects: int
    gain: Interval


@dataclass(frozen=True)
class Verdict:
    """The decision of the gate, with everything that it rests on.

    ``reasons`` say why the candidate was refused, or what it has shown; ``notes`` qualify that.
    """

    passed: bool
    reasons: list[str]
    candidate_ap: Interval
    champion_ap: Interval | None = None
    gain: Interval | None = None
    classes: list[ClassGain] = field(default_factory=list)
    latency_ratio: float | None = None
    notes: list[str] = field(default_factory=list)


def judge(
    candidate: Subject,
    champion: Subject | None,
    classes: Sequence[str],
    config: PromoteConfig,
    protocol: Protocol = "coco",
) -> Verdict:
    """Apply the gate of a configuration.

    The AP that decides is the one that selects checkpoints: COCO's over IoU 0.50 to 0.95, or VOC's
    at IoU 0.5. Both tables must be of the same images, else ValueError is raised.
    """
    ious = _ALL_IOUS if protocol == "coco" else _AP50
    size = _size_failure(candidate, config)
    if champion is None:
        found = bootstrap(candidate.table, len(classes), ious, config.resamples, protocol=protocol)
        return _first(found.interval(config.confidence), config, size)
    gain = paired_bootstrap(
        candidate.table, champion.table, len(classes), ious, config.resamples, protocol=protocol
    )
    interval = gain.interval(config.confidence)
    by_class = _class_gains(candidate.table, gain, classes, config.confidence)
    ratio = candidate.seconds_per_image / champion.seconds_per_image
    failures = [
        *_gain_failure(interval, config),
        *_class_failures(by_class, config),
        *_latency_failure(ratio, config),
        *size,
    ]
    shown = (
        f"AP rises by {interval.value:.4f} ({_bounds(interval)} at {config.confidence:.0%}), more "
        f"than {config.min_gain:g}"
    )
    return Verdict(
        passed=not failures,
        reasons=failures or [shown],
        candidate_ap=gain.candidate.interval(config.confidence),
        champion_ap=gain.reference.interval(config.confidence),
        gain=interval,
        classes=by_class,
        latency_ratio=ratio,
        notes=[
            "the interval covers the choice of images; how much AP varies with the seed of a "
            "training is not known from one training each"
        ],
    )


def _first(ap: Interval, config: PromoteConfig, size: list[str]) -> Verdict:
    """Judge by absolute minimums, without a champion."""
    failures = list(size)
    if not ap.value > config.min_ap:
        failures.insert(0, f"AP {ap.value:.4f} is not above promote.min_ap {config.min_ap:g}")
    shown = f"there is no champion, and AP {ap.value:.4f} is above promote.min_ap {config.min_ap:g}"
    return Verdict(passed=not failures, reasons=failures or [shown], candidate_ap=ap)


def _gain_failure(gain: Interval, config: PromoteConfig) -> list[str]:
    if gain.low > config.min_gain:
        return []
    return [
        f"AP changes by {gain.value:+.4f}, but the interval {_bounds(gain)} at "
        f"{config.confidence:.0%} is not above promote.min_gain {config.min_gain:g}: "
        + ("the candidate is worse" if gain.high < config.min_gain else "the gain may be noise")
    ]


def _class_gains(
    table: MatchTable, gain: Gain, classes: Sequence[str], confidence: float
) -> list[ClassGain]:
    objects = np.bincount(table.object_label[~table.object_ignored], minlength=len(classes))
    return [
        ClassGain(name, int(objects[label]), gain.class_interval(label, confidence))
        for label, name in enumerate(classes)
        if objects[label]
    ]


def _class_failures(classes: Sequence[ClassGain], config: PromoteConfig) -> list[str]:
    if config.max_class_loss is None:
        return []
    return [
        f"class {item.name} ({item.objects} objects) changes by {item.gain.value:+.4f} "
        f"({_bounds(item.gain)}), more than promote.max_class_loss {config.max_class_loss:g}"
        for item in classes
        if item.gain.value < -config.max_class_loss and item.gain.high < 0
    ]


def _latency_failure(ratio: float, config: PromoteConfig) -> list[str]:
    if config.max_latency_ratio is None or ratio <= config.max_latency_ratio:
        return []
    return [
        f"an image takes {ratio:.2f} times as long, more than promote.max_latency_ratio "
        f"{config.max_latency_ratio:g}"
    ]


def _size_failure(candidate: Subject, config: PromoteConfig) -> list[str]:
    if config.max_megabytes is None or candidate.megabytes <= config.max_megabytes:
        return []
    return [
        f"the weights have {candidate.megabytes:.1f} MB, more than promote.max_megabytes "
        f"{config.max_megabytes:g}"
    ]


def _bounds(interval: Interval) -> str:
    return f"[{interval.low:+.4f}, {interval.high:+.4f}]"
