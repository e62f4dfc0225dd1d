"""COCO's twelve metrics from a match table, bit-equal to those of pycocotools.

Crowd regions are ignored as COCO says: each absorbs any number of detections. Difficult objects of
VOC count neither as found nor as missed: they are ignored too, but absorb one detection each.

Shape letters: D detections of a class, T IoU thresholds, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.table import AREA_RANGES, IOU_THRESHOLDS, MAX_DETECTIONS, MatchTable

METRIC_NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)
RECALLS = np.linspace(0.0, 1.0, 101)
_AP75 = 5  # index of IoU 0.75


@dataclass(frozen=True)
class DetectionMetrics:
    """The metrics of one evaluation.

    metrics: those of the protocol by name, without those that no object counts for.
    per_class: class -> {"ap", "ap50"}, for classes with objects.
    precision: (101,C) precision at IoU 0.5 over recall 0, 0.01 .. 1; -1 without objects.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: NDArray[np.float64]


class ClassOutcome(NamedTuple):
    """The detections of one class by falling score, and the number of its objects.

    ``rows`` (D,) of the table; ``positive`` and ``negative`` (T,D), neither where it is ignored.
    """

    rows: NDArray[np.int64]
    positive: NDArray[np.bool_]
    negative: NDArray[np.bool_]
    objects: int


def coco_metrics(table: MatchTable, classes: Sequence[str]) -> DetectionMetrics:
    """Compute COCO's metrics, with at most 100 detections per image and class."""
    by_class = rows_by_class(table, len(classes))
    shape = (len(IOU_THRESHOLDS), len(RECALLS), len(classes))
    precision = np.full((len(AREA_RANGES), *shape), -1.0)  # at 100 detections
    recall = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), len(classes)), -1.0)
    few_recall = {limit: recall[0].copy() for limit in (1, 10)}
    for number, rows in enumerate(by_class):
        for area in range(len(AREA_RANGES)):
            outcome = class_outcome(table, rows, number, area)
            if outcome.objects:
                curves = _curves(outcome)
                recall[area, :, number], precision[area, :, :, number] = curves
        for limit, column in few_recall.items():
            outcome = class_outcome(table, rows, number, 0, limit)
            if outcome.objects:
                column[:, number] = _curves(outcome)[0]
    values = (
        *(precision[0], precision[0, 0], precision[0, _AP75], *precision[1:]),
        *(*few_recall.values(), *recall),
    )
    metrics = {
        name: float(np.mean(value[value > -1]))
        for name, value in zip(METRIC_NAMES, values, strict=True)
        if (value > -1).any()
    }
    per_class = {
        name: {
            "ap": float(precision[0, :, :, index].mean()),
            "ap50": float(precision[0, 0, :, index].mean()),
        }
        for index, name in enumerate(classes)
        if (precision[0, :, :, index] >= 0.0).any()
    }
    return DetectionMetrics(metrics, per_class, precision[0, 0])


def rows_by_class(
    table: MatchTable, classes: int, limit: int | None = MAX_DETECTIONS
) -> list[NDArray[np.int64]]:
    """Return, for each class, the rows of its counted detections by falling score.

    ``limit`` is that of detections per image. Equal scores stay in the order of the images.
    """
    counted = np.flatnonzero(table.rank < limit) if limit else np.arange(len(table.rank))
    by_score = counted[np.argsort(-table.score[counted], kind="stable")]
    by_class = by_score[np.argsort(table.label[by_score], kind="stable")]
    ends = np.searchsorted(table.label[by_class], np.arange(classes + 1))
    return [by_class[start:end] for start, end in pairwise(ends)]


def class_outcome(
    table: MatchTable,
    rows: NDArray[np.int64],
    label: int,
    area: int = 0,
    limit: int = MAX_DETECTIONS,
) -> ClassOutcome:
    """Return what the ``rows`` of a class are in an area range, with a limit per image."""
    low, high = AREA_RANGES[area]
    of_class = (table.object_label == label) & ~table.object_ignored
    in_range = (table.object_area >= low) & (table.object_area <= high)
    if limit < MAX_DETECTIONS:
        rows = rows[table.rank[rows] < limit]
    first = area * len(IOU_THRESHOLDS)
    bits = np.arange(first, first + len(IOU_THRESHOLDS), dtype=np.uint64)[:, None]  # (T,1)
    matched = (table.matched[rows] >> bits & np.uint64(1)).astype(np.bool_)
    counted = (table.ignored[rows] >> bits & np.uint64(1)) == 0
    return ClassOutcome(
        rows, matched & counted, ~matched & counted, int((of_class & in_range).sum())
    )


def _curves(outcome: ClassOutcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the final recall (T,) and the precision (T,101) at `RECALLS`."""
    positives = np.cumsum(outcome.positive, axis=1, dtype=np.float64)
    negatives = np.cumsum(outcome.negative, axis=1, dtype=np.float64)
    precision = np.zeros((len(IOU_THRESHOLDS), len(RECALLS)))
    if not len(outcome.rows):
        return np.zeros(len(IOU_THRESHOLDS)), precision
    recall = positives / outcome.objects
    raw = positives / (negatives + positives + np.spacing(1))
    envelope = np.maximum.accumulate(raw[:, ::-1], axis=1)[:, ::-1]
    for number, reached in enumerate(recall):
        index = np.searchsorted(reached, RECALLS, side="left")
        index = index[index < len(reached)]
        precision[number, : len(index)] = envelope[number, index]
    return recall[:, -1], precision
