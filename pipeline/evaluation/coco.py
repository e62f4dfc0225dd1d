"""COCO's twelve figures by pycocotools, from detections in the original image's pixels.

Crowd regions are ignored as COCO says (any number of detections may fall into one). Difficult
objects of VOC are neither found nor missed: they are ignored too, but take one detection each.
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

NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image: boxes (D, 4) xyxy in its own pixels, scores (D,), labels (D,)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


Scored = tuple[Sample, ImageDetections]


@dataclass(frozen=True)
class CocoResult:
    """Figures of one evaluation.

    metrics: COCO's figures by name; those without any object to find are left out.
    per_class: class -> {"ap", "ap50"}, for classes that occur.
    precision: (101, C) precision at IoU 0.5 over recall 0, 0.01 .. 1; -1 for absent classes.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: NDArray[np.float64]


class _CocoEval(COCOeval):
    """COCOeval that ignores difficult objects without making crowds of them."""

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for item in objects:
                item["ignore"] = item["ignore"] or item["difficult"]


def evaluate_coco(scored: Sequence[Scored], classes: Sequence[str]) -> CocoResult:
    """Score detections against their images' objects, in COCO's protocol (at most 100 an image)."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _ground_truth(scored, classes)
        found = _detections(truth, scored)
        evaluation = _CocoEval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {
        name: float(value)
        for name, value in zip(NAMES, evaluation.stats, strict=True)
        if value >= 0.0
    }
    # precision: (10 IoU thresholds, 101 recalls, C classes, 4 areas, 3 detection limits)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
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


def _ground_truth(scored: Sequence[Scored], classes: Sequence[str]) -> COCO:
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, (sample, _) in enumerate(scored, start=1):
        images.append({"id": number, "width": sample.width, "height": sample.height})
        columns = (sample.boxes, sample.labels, sample.crowd, sample.difficult, sample.area)
        for (x1, y1, x2, y2), label, crowd, difficult, area in zip(*columns, strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,  # 0 would read as "not matched" in COCOeval
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


def _detections(truth: COCO, scored: Sequence[Scored]) -> COCO:
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
        return truth.loadRes(table.astype(np.float64))
    empty = COCO()  # loadRes refuses an empty table
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
