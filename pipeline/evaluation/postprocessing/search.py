"""Find the settings of post-processing that score best on a set, on cached predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config import EvaluateConfig
from pipeline.evaluation.evaluate import match_detections
from pipeline.evaluation.postprocessing.raw import RawPredictions
from pipeline.evaluation.protocol import score
from pipeline.metrics import MatchTable
from pipeline.metrics.thresholds import threshold_curve

NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FINE_STEP = 0.05  # around the best of them
MAX_DETECTIONS = (100, 300)


class Settings(NamedTuple):
    """Settings of post-processing."""

    nms_iou: float
    class_agnostic: bool
    max_detections: int


@dataclass(frozen=True)
class Tried:
    """The metrics that settings give."""

    settings: Settings
    metrics: dict[str, float]


@dataclass(frozen=True)
class BestSettings:
    """The result of a search: the settings before and the best ones, with their match tables."""

    before: Tried
    best: Tried
    tried: list[Tried]
    tables: tuple[MatchTable, MatchTable]  # of before and of best


def find_best_settings(
    raw: RawPredictions,
    classes: Sequence[str],
    config: EvaluateConfig,
    report: Callable[[Tried], None] = lambda tried: None,
) -> BestSettings:
    """Search the IoU of NMS, within or across classes, and the number of detections.

    The deciding metric of the protocol ranks settings; among equals, the configured ones and then
    the first tried win. ``report`` is called with each.
    """
    metric = config.deciding_metric.removeprefix("val/")
    before = Settings(config.nms_iou, config.class_agnostic, config.max_detections)
    tried: dict[Settings, Tried] = {}
    tables: dict[Settings, MatchTable] = {}

    def best_of(best: Settings, options: Iterable[Settings]) -> Settings:
        for settings in options:
            if settings in tried:
                continue
            table = match_detections(raw.detections(*settings)).sorted_by_image_id()
            tried[settings] = Tried(settings, score(table, classes, config.protocol).metrics)
            report(tried[settings])
            if settings == before or value(settings) > value(best):
                best, tables[settings] = settings, table
        return best

    def value(settings: Settings) -> float:
        return tried[settings].metrics.get(metric, 0.0)

    best = best_of(before, [before])
    for agnostic in (False, True):
        same = before._replace(class_agnostic=agnostic)
        best = best_of(best, [same._replace(nms_iou=iou) for iou in NMS_IOUS])
    around = [round(best.nms_iou + step, 6) for step in (-FINE_STEP, FINE_STEP)]
    best = best_of(best, [best._replace(nms_iou=iou) for iou in around if 0 <= iou <= 1])
    best = best_of(best, [best._replace(max_detections=count) for count in MAX_DETECTIONS])
    return BestSettings(
        before=tried[before],
        best=tried[best],
        tried=list(tried.values()),
        tables=(tables[before], tables[best]),
    )


def score_thresholds(
    table: MatchTable, classes: Sequence[str]
) -> tuple[float | None, dict[str, float]]:
    """Return the score thresholds of the highest F1: over all classes, and of each.

    They are for using detections; AP only falls if any are left out.
    """
    overall = threshold_curve(table)
    by_class = {name: threshold_curve(table, label) for label, name in enumerate(classes)}
    return (
        None if overall is None else float(overall.threshold[overall.best]),
        {name: float(one.threshold[one.best]) for name, one in by_class.items() if one},
    )
