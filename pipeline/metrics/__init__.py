"""Metrics of detections against objects: what matches what, and the figures that follow."""

from pipeline.metrics.coco import DetectionMetrics, coco_metrics
from pipeline.metrics.matching import match_images
from pipeline.metrics.table import ImageDetections, MatchTable, Objects
from pipeline.metrics.voc import voc_average_precision, voc_metrics, voc_per_class

__all__ = [
    "DetectionMetrics",
    "ImageDetections",
    "MatchTable",
    "Objects",
    "coco_metrics",
    "match_images",
    "voc_average_precision",
    "voc_metrics",
    "voc_per_class",
]
