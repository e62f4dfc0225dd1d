"""Everything that an evaluation says about a detector, computed from its match table.

Shape letters: C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Protocol
from pipeline.evaluation.model_evaluation import ModelEvaluation
from pipeline.metrics import MatchTable
from pipeline.metrics.bootstrap import RESAMPLES, Interval, Resampled, bootstrap
from pipeline.metrics.calibration import Calibration, calibration, fit_temperature
from pipeline.metrics.errors import ErrorKind, error_breakdown
from pipeline.metrics.groups import ObjectGroup, recall_by_group
from pipeline.metrics.suspects import Suspect, label_suspects
from pipeline.metrics.table import AREA_RANGES, IOU_THRESHOLDS
from pipeline.metrics.thresholds import ThresholdCurve, confusion_matrix, threshold_curve

MAX_SUSPECTS = 200  # of each kind
CONFIDENCE = 0.95
_ALL_IOUS = tuple(range(len(IOU_THRESHOLDS)))
_INTERVALS = {  # indices of IoU thresholds, index of the range of area
    "ap": (_ALL_IOUS, 0),
    "ap50": ((0,), 0),
    "ap75": ((5,), 0),
    "ap_small": (_ALL_IOUS, 1),
    "ap_medium": (_ALL_IOUS, 2),
    "ap_large": (_ALL_IOUS, 3),
}
_VOC_INTERVALS = ("ap", "ap50", "ap75")


@dataclass(frozen=True)
class ClassFindings:
    """The figures of one class; AP and curve are None without objects or detections."""

    name: str
    objects: int
    images: int
    ap: Interval | None
    ap50: Interval | None
    curve: ThresholdCurve | None


@dataclass(frozen=True)
class Findings:
    """The figures of one evaluation.

    ``metrics`` are those of the protocol, and ``intervals`` has each AP among them with its
    bootstrap interval. ``threshold`` is the score of the highest F1 over all classes, at which
    ``confusion`` (C+1,C+1) and ``groups`` are counted. ``seconds`` is the time per image of the
    detector with post-processing.
    """

    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    classes: list[ClassFindings]
    curve: ThresholdCurve | None
    threshold: float
    confusion: NDArray[np.int64]
    errors: dict[str, ErrorKind]
    groups: dict[str, list[ObjectGroup]]
    calibration: Calibration
    temperature: float
    suspects: list[Suspect]
    images: int
    objects: int
    ignored: int
    detections: int
    resamples: int
    seconds: float | None = None
    device: str = ""

    @property
    def absent(self) -> list[str]:
        """Return the classes without an object that counts: no figure says anything about them."""
        return [one.name for one in self.classes if not one.objects]

    def as_json(self) -> dict[str, Any]:
        """Return the figures for JSON, where what is not a number is null."""
        content = {
            **{name: getattr(self, name) for name in ("protocol", "metrics", "intervals")},
            **{name: getattr(self, name) for name in ("images", "objects", "ignored")},
            "classes_without_objects": self.absent,
            "per_class": {one.name: _class_figures(one) for one in self.classes},
            "best_threshold": _at_best(self.curve),
            "confusion": self.confusion,
            "errors": self.errors,
            "recall": self.groups,
            "calibration": {**asdict(self.calibration), "temperature": self.temperature},
            "suspects": {kind: sum(s.kind == kind for s in self.suspects) for kind in _KINDS},
            "speed": {"seconds_per_image": self.seconds, "device": self.device},
            "resamples": self.resamples,
            "confidence": CONFIDENCE,
        }
        result: dict[str, Any] = json.loads(json.dumps(_plain(content), allow_nan=False))
        return result


_KINDS = ("unlabelled", "wrong class", "nothing there")


def analyse(
    found: ModelEvaluation,
    protocol: Protocol = "coco",
    resamples: int = RESAMPLES,
    speed: tuple[float, str] | None = None,
) -> Findings:
    """Compute all figures of an evaluation. ``speed`` is seconds per image, and on what."""
    table, names = found.evaluation.table, found.classes
    intervals, per_class = _intervals(table, names, resamples, protocol)
    curve = threshold_curve(table)
    threshold = float(curve.threshold[curve.best]) if curve else 0.5
    counted = ~table.object_ignored
    classes = []
    for label, name in enumerate(names):
        own = counted & (table.object_label == label)
        ap, ap50 = (_or_none(per_class[key].class_interval(label)) for key in ("ap", "ap50"))
        images = len(np.unique(table.object_image[own]))
        shown = threshold_curve(table, label)
        classes.append(ClassFindings(name, int(own.sum()), images, ap, ap50, shown))
    return Findings(
        protocol=protocol,
        metrics=found.evaluation.result.metrics,
        intervals=intervals,
        classes=classes,
        curve=curve,
        threshold=threshold,
        confusion=confusion_matrix(table, len(names), threshold),
        errors=error_breakdown(table, len(names)),
        groups=recall_by_group(table, threshold),
        calibration=calibration(table),
        temperature=fit_temperature(table),
        suspects=label_suspects(table, threshold, MAX_SUSPECTS),
        images=table.images,
        objects=int(counted.sum()),
        ignored=int((~counted).sum()),
        detections=len(table.label),
        resamples=resamples,
        seconds=speed[0] if speed else None,
        device=speed[1] if speed else "",
    )


def _intervals(
    table: MatchTable, names: Sequence[str], resamples: int, protocol: Protocol
) -> tuple[dict[str, Interval], dict[str, Resampled]]:
    drawn = {}
    for name in _INTERVALS if protocol == "coco" else _VOC_INTERVALS:
        ious, area = _INTERVALS[name]
        low, high = AREA_RANGES[area]
        in_range = (table.object_area >= low) & (table.object_area <= high)
        if (in_range & ~table.object_ignored).any() or not area:
            drawn[name] = bootstrap(
                table, len(names), ious, resamples, area=area, protocol=protocol
            )
    found = {name: _or_none(sample.interval(CONFIDENCE)) for name, sample in drawn.items()}
    return {name: one for name, one in found.items() if one is not None}, drawn


def _or_none(interval: Interval) -> Interval | None:
    return None if math.isnan(interval.value) else interval


def _class_figures(one: ClassFindings) -> dict[str, Any]:
    best = {"best_threshold": _at_best(one.curve)}
    return {"objects": one.objects, "images": one.images, "ap": one.ap, "ap50": one.ap50, **best}


def _at_best(curve: ThresholdCurve | None) -> dict[str, float] | None:
    if curve is None:
        return None
    names = ("threshold", "precision", "recall", "f1")
    return {name: float(getattr(curve, name)[curve.best]) for name in names}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
