"""Average precision as PASCAL VOC defines it, in its forms of 2007 (11 points) and later (area).

Every detection of a class, by falling score, claims the object of its class with which its IoU is
highest. Above the threshold it is positive if it is the first to claim that object, else negative;
if the object is difficult, it counts as neither. A crowd region counts as a difficult object.

Source: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010.

Shape letters: D detections of a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.coco import ClassOutcome, rows_by_class
from pipeline.metrics.matching import match_images
from pipeline.metrics.table import IOU_THRESHOLDS, ImageDetections, MatchTable, Objects

VocMetric = Literal["voc07", "area"]
METRIC_NAMES = ("ap", "ap50", "ap75")
RECALLS_2007 = np.arange(0.0, 1.1, 0.1)


def voc_average_precision(
    ground_truth: Iterable[Mapping[str, Any]],
    detections: Iterable[Mapping[str, Any]],
    classes: Sequence[str],
    iou: float | Sequence[float] = 0.5,
    metric: VocMetric = "voc07",
) -> dict[str, float]:
    """Return the AP of each class that has objects which are not difficult.

    ``ground_truth`` lists images, each ``{"image": id, "objects": [{"name", "bbox",
    "difficult"}]}``; ``detections`` lists ``{"image", "name", "score", "bbox"}``. Boxes are xyxy in
    1-based inclusive pixels, as VOC writes them. With several ``iou`` thresholds the AP is the mean
    over them. Raises ValueError for a name that is not in ``classes`` and for an image id that is
    unknown or occurs twice.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for item in detections:
        found.setdefault(item["image"], []).append(item)
    images = []
    for item in ground_truth:
        own = found.pop(item["image"], [])
        images.append((item["image"], _objects(item["objects"], classes), _found(own, classes)))
    if len({name for name, _, _ in images}) < len(images):
        raise ValueError("an image id occurs twice in the ground truth")
    if found:
        raise ValueError(f"detections of the unknown image {next(iter(found))!r}")
    table = match_images(images)
    thresholds = [iou] if isinstance(iou, int | float) else list(iou)
    return voc_per_class(table, classes, thresholds, metric)


def voc_metrics(table: MatchTable, classes: Sequence[str], metric: VocMetric) -> dict[str, float]:
    """Return the means over classes: ``ap50``, ``ap75``, and ``ap`` over IoU 0.50:0.95.

    Empty without objects.
    """
    thresholds = (IOU_THRESHOLDS.tolist(), [0.5], [0.75])
    per_class = {
        name: voc_per_class(table, classes, ious, metric)
        for name, ious in zip(METRIC_NAMES, thresholds, strict=True)
    }
    return {name: float(np.mean([*ap.values()])) for name, ap in per_class.items() if ap}


def voc_per_class(
    table: MatchTable, classes: Sequence[str], ious: Sequence[float], metric: VocMetric
) -> dict[str, float]:
    """Return the AP of each class with objects that count, as mean over IoU thresholds."""
    if metric not in ("voc07", "area"):
        raise ValueError(f"metric is {metric!r}; choose voc07 or area")
    result = {}
    score = _eleven_points if metric == "voc07" else _area
    for label, rows in enumerate(rows_by_class(table, len(classes), limit=None)):
        outcome = voc_outcome(table, rows, label, ious)
        if outcome.objects:
            curves = [_curve(outcome, number) for number in range(len(ious))]
            result[classes[label]] = float(np.mean([score(*curve) for curve in curves]))
    return result


def voc_outcome(
    table: MatchTable, rows: NDArray[np.int64], label: int, ious: Sequence[float]
) -> ClassOutcome:
    """Return what the ``rows`` of a class, by falling score, are at IoU thresholds."""
    objects = int(((table.object_label == label) & ~table.object_ignored).sum())
    claimed = table.same_class_object[rows]
    positive = np.zeros((len(ious), len(rows)), np.bool_)
    negative = positive.copy()
    for number, iou in enumerate(ious):
        over = (table.same_class_iou[rows] > iou) & (claimed >= 0)
        ignored = np.zeros(len(rows), np.bool_)
        ignored[over] = table.object_ignored[claimed[over]]
        candidates = np.flatnonzero(over & ~ignored)
        first = candidates[np.unique(claimed[candidates], return_index=True)[1]]
        positive[number, first] = True
        negative[number] = ~positive[number] & ~ignored
    return ClassOutcome(rows, positive, negative, objects)


def _curve(outcome: ClassOutcome, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall and precision (D,) after each detection that counts, at one threshold."""
    counted = outcome.positive[number] | outcome.negative[number]
    positive = np.cumsum(outcome.positive[number][counted])
    count = np.arange(1, len(positive) + 1)
    return positive / outcome.objects, positive / count


def _eleven_points(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    return float(np.mean([precision[recall >= point].max(initial=0.0) for point in RECALLS_2007]))


def _area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _objects(items: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Objects:
    boxes = _exclusive([item["bbox"] for item in items])
    return Objects(
        boxes=boxes,
        labels=_labels(items, classes),
        crowd=np.zeros(len(items), np.bool_),
        difficult=np.array([bool(item.get("difficult", 0)) for item in items], np.bool_),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )


def _found(items: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> ImageDetections:
    boxes = _exclusive([item["bbox"] for item in items])
    scores = np.array([item["score"] for item in items], np.float64)
    return ImageDetections(boxes, scores, _labels(items, classes))


def _labels(items: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> NDArray[np.int64]:
    unknown = [item["name"] for item in items if item["name"] not in classes]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} is not one of {', '.join(classes)}")
    return np.array([classes.index(item["name"]) for item in items], np.int64)


def _exclusive(boxes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Convert boxes (N,4) from 1-based inclusive to 0-based exclusive pixels."""
    converted = np.array(boxes, np.float64).reshape(-1, 4)
    converted[:, :2] -= 1.0
    return converted
