"""Which errors a detector makes, and how much AP each kind costs, as TIDE defines it.

At IoU 0.5 every detection that is not positive has one kind of error:

- localisation: an object of its class has an IoU from 0.1 to 0.5;
- classification: an object of another class has an IoU of at least 0.5;
- duplicate: an object of its class has an IoU of at least 0.5, but is matched already;
- background: no object has an IoU above 0.1;
- both: what is left, an object of another class at an IoU from 0.1 to 0.5.

An object is missed if it is not matched and no localisation or classification error is about it.
The cost of a kind is how much AP at IoU 0.5 rises when all errors of that kind are repaired and
nothing else: a wrong box or class is set right, and of two detections of one object the one with
the higher score stays; other errors are removed; missed objects are not expected any more.

Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020.

Shape letters: D detections, M objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.coco import RECALLS
from pipeline.metrics.table import MAX_DETECTIONS, MatchTable

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
NO_ERROR = -1  # a positive, or ignored
_FOREGROUND, _BACKGROUND = 0.5, 0.1


@dataclass(frozen=True)
class ErrorKind:
    """How often an error occurs, and the AP at IoU 0.5 that it costs."""

    count: int
    ap_cost: float


@dataclass(frozen=True)
class _Outcome:
    """Detections that count and objects that are expected, for an AP."""

    label: NDArray[np.int32]
    score: NDArray[np.float64]
    positive: NDArray[np.bool_]
    objects: NDArray[np.int64]  # by class


def error_breakdown(table: MatchTable, classes: int) -> dict[str, ErrorKind]:
    """Return the count and the cost of each of `KINDS`."""
    kinds, missed = detection_errors(table), missed_objects(table)
    expected = np.bincount(table.object_label[~table.object_ignored], minlength=classes)
    counted = (table.rank < MAX_DETECTIONS) & ~_ignored(table)
    plain = _Outcome(table.label, table.score, _positive(table), expected)
    before = _mean_ap(plain, counted)
    breakdown = {}
    for number, name in enumerate(KINDS):
        own = kinds == number
        if name == "missed":
            left = expected - np.bincount(table.object_label[missed], minlength=classes)
            repaired, kept = _Outcome(plain.label, plain.score, plain.positive, left), counted
        elif name in ("classification", "localisation"):
            repaired, kept = _corrected(table, plain, own, counted, name)
        else:
            repaired, kept = plain, counted & ~own
        count = int(missed.sum() if name == "missed" else own.sum())
        breakdown[name] = ErrorKind(count, _mean_ap(repaired, kept) - before)
    return breakdown


def detection_errors(table: MatchTable) -> NDArray[np.int8]:
    """Return the index in `KINDS` of each detection's error (D,), or `NO_ERROR`."""
    same, other = table.same_class_iou, table.other_class_iou
    conditions = (
        (same >= _BACKGROUND) & (same < _FOREGROUND),
        other >= _FOREGROUND,
        same >= _FOREGROUND,
        np.maximum(same, other) <= _BACKGROUND,
    )
    names = ("localisation", "classification", "duplicate", "background")
    kinds = np.select(conditions, [KINDS.index(name) for name in names], KINDS.index("both"))
    fine = _positive(table) | _ignored(table) | (table.rank >= MAX_DETECTIONS)
    return np.where(fine, NO_ERROR, kinds).astype(np.int8)


def missed_objects(table: MatchTable) -> NDArray[np.bool_]:
    """Return which objects (M,) are neither found nor the subject of another error."""
    kinds = detection_errors(table)
    covered = np.zeros(len(table.object_label) + 1, np.bool_)  # the last is for -1
    covered[table.coco_object] = True
    covered[_subject(table, kinds)] = True
    return ~covered[:-1] & ~table.object_ignored


def _subject(table: MatchTable, kinds: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return the object (D,) that a wrong box or class is about, or -1."""
    wrong_box = kinds == KINDS.index("localisation")
    wrong_class = kinds == KINDS.index("classification")
    subject = np.where(wrong_class, table.other_class_object, -1)
    return np.where(wrong_box, table.same_class_object, subject).astype(np.int32)


def _corrected(
    table: MatchTable,
    plain: _Outcome,
    own: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    name: str,
) -> tuple[_Outcome, NDArray[np.bool_]]:
    """Return the outcome when the errors of one kind find their object, and what then counts."""
    column = table.other_class_object if name == "classification" else table.same_class_object
    claimed = np.where(own, column, np.where(plain.positive, table.coco_object, -1))
    claims = np.flatnonzero(claimed >= 0)
    by_score = claims[np.argsort(-table.score[claims], kind="stable")]
    winners = by_score[np.unique(claimed[by_score], return_index=True)[1]]
    label = plain.label.copy()
    label[claims] = table.object_label[claimed[claims]]
    positive = np.zeros(len(label), np.bool_)
    positive[winners] = True
    kept = counted.copy()
    kept[claims] = False
    # A claim on an object that does not count is ignored, as a match of it would be.
    kept[winners] = ~table.object_ignored[claimed[winners]]
    return _Outcome(label, plain.score, positive, plain.objects), kept


def _mean_ap(outcome: _Outcome, kept: NDArray[np.bool_]) -> float:
    """Return the mean over classes with expected objects of the AP at 101 recalls."""
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(-outcome.score[rows], kind="stable")]
    values = []
    for label in np.flatnonzero(outcome.objects):
        positive = np.cumsum(outcome.positive[rows[outcome.label[rows] == label]])
        precision = positive / np.arange(1, len(positive) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        index = np.searchsorted(positive / outcome.objects[label], RECALLS, side="left")
        values.append(envelope[index[index < len(positive)]].sum() / len(RECALLS))
    return float(np.mean(values)) if values else 0.0


def _positive(table: MatchTable) -> NDArray[np.bool_]:
    return ((table.matched & ~table.ignored) & np.uint64(1)).astype(np.bool_)


def _ignored(table: MatchTable) -> NDArray[np.bool_]:
    return (table.ignored & np.uint64(1)).astype(np.bool_)
