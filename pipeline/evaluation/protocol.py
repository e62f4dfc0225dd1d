"""The protocols by which an evaluation is scored."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Protocol
from pipeline.metrics import DetectionMetrics, MatchTable, coco_metrics, voc_metrics, voc_per_class
from pipeline.metrics.table import IOU_THRESHOLDS
from pipeline.metrics.voc import VocMetric


def score(table: MatchTable, classes: Sequence[str], protocol: Protocol) -> DetectionMetrics:
    """Compute the metrics of a protocol, overall and per class.

    ``coco`` gives COCO's twelve; ``voc07`` and ``voc`` give ``ap50``, ``ap75`` and ``ap`` (the mean
    over IoU 0.50:0.95) as VOC defines average precision. The precision curves are COCO's.
    """
    coco = coco_metrics(table, classes)
    if protocol == "coco":
        return coco
    metric: VocMetric = "voc07" if protocol == "voc07" else "area"
    ap = voc_per_class(table, classes, IOU_THRESHOLDS.tolist(), metric)
    ap50 = voc_per_class(table, classes, [0.5], metric)
    per_class = {name: {"ap": ap[name], "ap50": ap50[name]} for name in ap}
    return DetectionMetrics(voc_metrics(table, classes, metric), per_class, coco.precision)
