"""COCO's twelve metrics by pycocotools, from detections in pixels of the original image.

Crowd regions are ignored as COCO says: each absorbs any number of detections. Difficult objects of
VOC count neither as found nor as missed: they are ignored too, but absorb one detection each.

Shape letters: D detections of an image, C classes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data import Sample

METRIC_NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image: boxes (D,4) xyxy in its own pixels, scores (D,), labels (D,)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


ScoredImage = tuple[Sample, ImageDetections]


@dataclass(frozen=True)
class CocoResult:
    """The metrics of one evaluation.

    metrics: COCO's metrics by name, without those that no object counts for.
    per_class: class -> {"ap", "ap50"}, for classes with objects.
    precision: (101,C) precision at IoU 0.5 over recall 0, 0.01 .. 1; -1 without objects.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: NDArray[np.float64]


class _CocoEval(COCOeval):
    """COCOeval that ignores difficult objects without treating them as crowds."""

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = item["ignore"] or item["difficult"]


def evaluate_coco(scored: Sequence[ScoredImage], classes: Sequence[str]) -> CocoResult:
    """Score detections against the objects by COCO's protocol, at most 100 detections per image."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _ground_truth(scored, classes)
        found = _detections(ground_truth, scored)
        evaluation = _CocoEval(ground_truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {
        name: float(value)
        for name, value in zip(METRIC_NAMES, evaluation.stats, strict=True)
        if value >= 0.0
    }
    # (10 IoU thresholds, 101 recalls, C, 4 areas, 3 detection limits)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (10,101,C)
    return CocoResult(metrics, _per_class(precision, classes), precision[0])


def _per_class(
    precision: NDArray[np.float64], classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    return {
        name: {
            "ap": float(precision[:, :, index].mean()),
            "ap50": float(precision[0, :, index].mean()),
        }
        for index, name in enumerate(classes)
        if (precision[:, :, index] >= 0.0).any()
    }


def _ground_truth(scored: Sequence[ScoredImage], classes: Sequence[str]) -> COCO:
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, (sample, _) in enumerate(scored, start=1):
        images.append({"id": number, "width": sample.width, "height": sample.height})
        columns = (sample.boxes, sample.labels, sample.crowd, sample.difficult, sample.area)
        for (x1, y1, x2, y2), label, crowd, difficult, area in zip(*columns, strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,  # 0 means "not matched" in COCOeval
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": int(crowd),
                    "difficult": int(difficult),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
    }
    coco.createIndex()
    return coco


def _detections(ground_truth: COCO, scored: Sequence[ScoredImage]) -> COCO:
    rows = [
        np.column_stack(
            [
                np.full(len(found.scores), number),
                found.boxes[:, :2],
                found.boxes[:, 2:] - found.boxes[:, :2],
                found.scores,
                found.labels + 1,
            ]
        )
        for number, (_, found) in enumerate(scored, start=1)
    ]
    table = np.concatenate(rows) if rows else np.empty((0, 7))
    if len(table):
        return ground_truth.loadRes(table.astype(np.float64))
    empty = COCO()  # loadRes rejects an empty table
    empty.dataset = {**ground_truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
