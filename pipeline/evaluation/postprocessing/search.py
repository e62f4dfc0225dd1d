"""Find the settings of post-processing that score best on a set, on cached predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from pipeline.config import EvaluateConfig
from pipeline.evaluation.postprocessing.matcher import SettingsMatcher
from pipeline.evaluation.postprocessing.raw import RawPredictions
from pipeline.evaluation.postprocessing.settings import BestSettings, Settings, Tried
from pipeline.evaluation.protocol import score
from pipeline.metrics import MatchTable
from pipeline.metrics.bootstrap import Interval, paired_bootstrap
from pipeline.metrics.table import IOU_THRESHOLDS
from pipeline.metrics.thresholds import threshold_curve

NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FINE_STEP = 0.05  # around the best of them
MAX_DETECTIONS = (100, 300)


class Search(NamedTuple):
    """The result of a search, and what it was found from."""

    found: BestSettings
    tried: list[Tried]
    before: MatchTable
    """The matches with the settings of the training."""
    interval: Interval
    """Of the metric with the settings of the training, over images."""


def search_settings(
    raw: RawPredictions,
    classes: Sequence[str],
    config: EvaluateConfig,
    report: Callable[[Tried], None] = lambda tried: None,
) -> Search:
    """Search the IoU of NMS, within or across classes, and the number of detections.

    The deciding metric of the protocol ranks settings; among equals, the configured ones and then
    the first tried win. ``report`` is called with each. The gain of the best has an interval by a
    paired bootstrap over images.
    """
    metric = config.deciding_metric.removeprefix("val/")
    before = settings_of(config)
    ious = {before.nms_iou, *NMS_IOUS}
    ious |= {round(iou + step, 6) for iou in ious for step in (-FINE_STEP, FINE_STEP)}
    ious = {iou for iou in ious if 0 <= iou <= 1}
    matcher = SettingsMatcher(raw, product(sorted(ious), (False, True)))
    tried: dict[Settings, Tried] = {}
    tables: dict[Settings, MatchTable] = {}

    def best_of(best: Settings, options: Iterable[Settings]) -> Settings:
        for settings in options:
            if settings in tried:
                continue
            table = matcher.match(settings)
            tried[settings] = Tried(settings, score(table, classes, config.protocol).metrics)
            report(tried[settings])
            if settings == before or value(settings) > value(best):
                best, tables[settings] = settings, table
        return best

    def value(settings: Settings) -> float:
        return tried[settings].metrics.get(metric, 0.0)

    best = best_of(before, [before])
    for agnostic in (False, True):
        same = replace(before, class_agnostic=agnostic)
        best = best_of(best, [replace(same, nms_iou=iou) for iou in NMS_IOUS])
    around = [round(best.nms_iou + step, 6) for step in (-FINE_STEP, FINE_STEP)]
    best = best_of(best, [replace(best, nms_iou=iou) for iou in around if iou in ious])
    best = best_of(best, [replace(best, max_detections=count) for count in MAX_DETECTIONS])
    gain = paired_bootstrap(
        tables[best],
        tables[before],
        len(classes),
        deciding_ious(config),
        protocol=config.protocol,
    )
    found = BestSettings(metric, tried[before], tried[best], gain.interval())
    overall, by_class = score_thresholds(tables[found.advised.settings], classes)
    found = replace(found, score_threshold=overall, score_thresholds=by_class)
    return Search(found, list(tried.values()), tables[before], gain.reference.interval())


def settings_of(config: EvaluateConfig) -> Settings:
    """Return the configured settings."""
    return Settings(config.nms_iou, config.class_agnostic, config.max_detections)


def deciding_ious(config: EvaluateConfig) -> tuple[int, ...]:
    """Return the indices of COCO's IoU thresholds over which the deciding metric is averaged."""
    return (0,) if config.deciding_metric == "val/ap50" else tuple(range(len(IOU_THRESHOLDS)))


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
