"""Recall and AP by what objects are like: their size, their aspect, how crowded they are.

Shape letters: M objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.iou import pairwise_iou
from pipeline.metrics.table import MatchTable

SIZES = ("tiny: below 16 px", "small: 16 to 32 px", "medium: 32 to 96 px", "large: above 96 px")
ASPECTS = ("tall: below 1:2", "upright: 1:2 to 1:1", "wide: 1:1 to 2:1", "flat: above 2:1")
CROWDING = ("alone: no overlap", "touching: IoU below 0.3", "crowded: IoU of 0.3 or more")


@dataclass(frozen=True)
class ObjectGroup:
    """Objects of one kind, and the share of them that is found at IoU 0.5."""

    name: str
    objects: int
    recall: float  # NaN without objects


def recall_by_group(table: MatchTable, threshold: float) -> dict[str, list[ObjectGroup]]:
    """Return, by size, aspect and crowding, the recall of detections with at least a score.

    Sizes are square roots of areas, aspects are width over height, crowding is the highest IoU with
    another object of the image.
    """
    detected = (table.coco_object >= 0) & (table.score >= threshold)
    found = np.zeros(len(table.object_label), np.bool_)
    found[table.coco_object[detected]] = True
    sides = np.sqrt(table.object_area)
    x1, y1, x2, y2 = table.object_box.T
    aspects = (x2 - x1) / np.maximum(y2 - y1, 1e-6)
    return {
        "size": _groups(table, found, SIZES, np.digitize(sides, [16.0, 32.0, 96.0])),
        "aspect": _groups(table, found, ASPECTS, np.digitize(aspects, [0.5, 1.0, 2.0])),
        "crowding": _groups(table, found, CROWDING, np.digitize(crowding(table), [1e-9, 0.3])),
    }


def crowding(table: MatchTable) -> NDArray[np.float64]:
    """Return the highest IoU (M,) of each object with another object of its image."""
    highest = np.zeros(len(table.object_label))
    boxes = table.object_box.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    starts = np.searchsorted(table.object_image, np.arange(table.images + 1))
    for start, end in pairwise(starts.tolist()):
        if end - start > 1:
            overlap = pairwise_iou(boxes[start:end], boxes[start:end])
            np.fill_diagonal(overlap, 0.0)
            highest[start:end] = overlap.max(1)
    return highest


def _groups(
    table: MatchTable, found: NDArray[np.bool_], names: Sequence[str], group: NDArray[np.intp]
) -> list[ObjectGroup]:
    counted = ~table.object_ignored
    groups = []
    for number, name in enumerate(names):
        own = counted & (group == number)
        recall = float(found[own].mean()) if own.any() else float("nan")
        groups.append(ObjectGroup(name, int(own.sum()), recall))
    return groups
