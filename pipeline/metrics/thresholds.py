"""Precision, recall and F1 over the score threshold, and the threshold of the highest F1.

At IoU 0.5, by COCO's matches: a threshold keeps the detections with at least that score, and which
of them are positive does not depend on it, since detections match by falling score.

Shape letters: D detections, C classes, K points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.table import MAX_DETECTIONS, MatchTable

_MAX_POINTS = 200  # of a curve; a page draws no more
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ThresholdCurve:
    """Values (K,) over falling score thresholds, and the ``best`` index, of the highest F1."""

    threshold: _Floats
    precision: _Floats
    recall: _Floats
    f1: _Floats
    best: int


def threshold_curve(table: MatchTable, label: int | None = None) -> ThresholdCurve | None:
    """Return the curve of one class, or of all detections of all classes together.

    None without objects that count, and without detections.
    """
    counted = table.rank < MAX_DETECTIONS
    expected = ~table.object_ignored
    if label is not None:
        counted &= table.label == label
        expected &= table.object_label == label
    ignored = (table.ignored & np.uint64(1)).astype(np.bool_)
    rows = np.flatnonzero(counted & ~ignored)
    if not expected.any() or not len(rows):
        return None
    rows = rows[np.argsort(-table.score[rows], kind="stable")]
    scores = table.score[rows]
    positive = np.cumsum((table.matched[rows] & np.uint64(1)).astype(np.int64))
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # of each distinct score
    precision = positive[last] / (last + 1)
    recall = positive[last] / int(expected.sum())
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    best = int(f1.argmax())
    # Most detections have low scores: half of the points are spread over the recall instead.
    half = min(_MAX_POINTS // 2, len(last))
    spread = np.linspace(0, len(last) - 1, half).astype(np.int64)
    by_recall = np.searchsorted(recall, np.linspace(0, recall[-1], half))
    points = np.unique(np.concatenate([spread, by_recall, [best]]))
    return ThresholdCurve(
        threshold=scores[last][points],
        precision=precision[points],
        recall=recall[points],
        f1=f1[points],
        best=int(np.searchsorted(points, best)),
    )


def confusion_matrix(table: MatchTable, classes: int, threshold: float) -> NDArray[np.int64]:
    """Count pairs at IoU 0.5 of detections with at least a score: (C+1,C+1), objects in the rows.

    Each object that counts is paired with the best-scored detection whose highest IoU over all
    classes is with it, of any class. The last row is for detections without an object, the last
    column for objects without a detection. Detections on difficult objects and crowds are left out.
    """
    iou, claimed = best_object(table)
    counted_detections = (table.ignored & np.uint64(1)) == 0
    rows = np.flatnonzero(
        (table.score >= threshold) & (table.rank < MAX_DETECTIONS) & counted_detections
    )
    on_object = iou[rows] >= 0.5
    alone = rows[~on_object]
    rows = rows[on_object]
    rows = rows[np.argsort(-table.score[rows], kind="stable")]
    is_first = np.zeros(len(rows), np.bool_)
    is_first[np.unique(claimed[rows], return_index=True)[1]] = True
    counted = ~table.object_ignored
    real = counted[claimed[rows]]
    paired = rows[is_first & real]
    alone = np.concatenate([alone, rows[~is_first & real]])
    unfound = counted.copy()
    unfound[claimed[rows]] = False
    no_object = np.full(len(alone), classes)
    no_detection = np.full(int(unfound.sum()), classes)
    objects = [table.object_label[claimed[paired]], no_object, table.object_label[unfound]]
    seen_as = [table.label[paired], table.label[alone], no_detection]
    cells = np.concatenate(objects) * (classes + 1) + np.concatenate(seen_as)
    return np.bincount(cells, minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)


def best_object(table: MatchTable) -> tuple[_Floats, NDArray[np.int32]]:
    """Return the highest IoU (D,) of each detection with any object, and that object.

    An object of the detection's own class is preferred at the same IoU.
    """
    same = table.same_class_iou >= table.other_class_iou
    iou = np.where(same, table.same_class_iou, table.other_class_iou)
    return iou, np.where(same, table.same_class_object, table.other_class_object)
