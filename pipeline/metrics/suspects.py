"""Labels that may be wrong, from where a detector and the labels disagree most.

Shape letters: D detections, M objects.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.iou import pairwise_iou
from pipeline.metrics.table import MAX_DETECTIONS, MatchTable
from pipeline.metrics.thresholds import best_object

SuspectKind = Literal["unlabelled", "wrong class", "nothing there"]
_SAME_BOX, _APART = 0.5, 0.1  # IoU


class Suspect(NamedTuple):
    """A label to look at.

    ``strength`` ranks suspects of a kind, in [0,1]: the score of the detection, or for "nothing
    there" one minus the highest score of a detection near the object. ``label`` is the class that
    the detector sees, or that of an object that nothing finds. ``object`` is its row, or -1.
    """

    kind: SuspectKind
    image: int
    box: tuple[float, float, float, float]
    label: int
    strength: float
    object: int


def label_suspects(table: MatchTable, threshold: float, limit: int) -> list[Suspect]:
    """Return up to ``limit`` suspects of each kind, the strongest first.

    Detections with at least the ``threshold`` count as confident. Three kinds: a confident
    detection where no object is (an object may lack its label), one on an object of another class
    that no detection of that class finds, and an object that no detection comes near to.
    """
    iou, nearest = best_object(table)
    counted = (table.ignored & np.uint64(1)) == 0  # not on a crowd region or a difficult object
    confident = (table.score >= threshold) & (table.rank < MAX_DETECTIONS) & counted
    unlabelled = _separate(table, np.flatnonzero(confident & (iou < _APART)), limit)
    ignored = np.append(table.object_ignored, False)  # the last is for -1
    found = np.zeros(len(table.object_label) + 1, np.bool_)
    found[table.coco_object[confident]] = True
    wrong = np.flatnonzero(
        confident
        & (table.other_class_iou >= _SAME_BOX)
        & (table.same_class_iou < _SAME_BOX)
        & ~found[table.other_class_object]
        & ~ignored[table.other_class_object]
    )
    wrong = wrong[np.argsort(-table.score[wrong], kind="stable")]
    wrong = wrong[np.sort(np.unique(table.other_class_object[wrong], return_index=True)[1])]
    return [
        *_detected("unlabelled", table, unlabelled, np.full(len(table.label), -1), limit),
        *_detected("wrong class", table, wrong, table.other_class_object, limit),
        *_unfound(table, iou, nearest, limit),
    ]


def _separate(table: MatchTable, rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return the strongest detections, without those on a stronger one of any class."""
    chosen: list[int] = []
    boxes = table.box.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    for row in rows[np.argsort(-table.score[rows], kind="stable")]:
        if len(chosen) == limit:
            break
        near = [other for other in chosen if table.image[other] == table.image[row]]
        if not near or pairwise_iou(boxes[[row]], boxes[near]).max() < _SAME_BOX:
            chosen.append(int(row))
    return np.array(chosen, np.int64)


def _detected(
    kind: SuspectKind,
    table: MatchTable,
    rows: NDArray[np.int64],
    objects: NDArray[np.int32],
    limit: int,
) -> list[Suspect]:
    rows = rows[np.argsort(-table.score[rows], kind="stable")][:limit]
    return [
        Suspect(
            kind,
            int(table.image[row]),
            _box(table.box[row]),
            int(table.label[row]),
            float(table.score[row]),
            int(objects[row]),
        )
        for row in rows
    ]


def _unfound(
    table: MatchTable, iou: NDArray[np.float64], nearest: NDArray[np.int32], limit: int
) -> list[Suspect]:
    highest = np.zeros(len(table.object_label))
    near = iou >= _APART
    np.maximum.at(highest, nearest[near], table.score[near])
    rows = np.flatnonzero(~table.object_ignored)
    rows = rows[np.argsort(highest[rows], kind="stable")][:limit]
    return [
        Suspect(
            "nothing there",
            int(table.object_image[row]),
            _box(table.object_box[row]),
            int(table.object_label[row]),
            1.0 - float(highest[row]),
            int(row),
        )
        for row in rows
        if highest[row] < _APART
    ]


def _box(box: NDArray[np.float32]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return x1, y1, x2, y2
