"""The figures of an evaluation that a model version shows: few, with intervals and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import Protocol
from pipeline.metrics.bootstrap import RESAMPLES, Interval, bootstrap
from pipeline.metrics.table import IOU_THRESHOLDS, MatchTable

_IOUS = {"ap": tuple(range(len(IOU_THRESHOLDS))), "ap50": (0,)}
_MIN_RESAMPLES = 100
_MAX_WORK = 5e8  # detections times resamples; about 20 s on one core


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassSummary(_Part):
    """The figures of one class."""

    objects: int = Field(description="without crowd and difficult ones")
    ap: Interval | None = Field(description="None without objects")


class EvaluationSummary(_Part):
    """AP of a protocol with 95% intervals over images, and the objects of each class."""

    images: int
    objects: int
    resamples: int
    intervals: dict[str, Interval] = Field(description="ap and ap50; none without objects")
    classes: dict[str, ClassSummary]


def summarize(table: MatchTable, classes: Sequence[str], protocol: Protocol) -> EvaluationSummary:
    """Summarize an evaluation. Large ones are resampled less often, so that it takes seconds."""
    resamples = affordable_resamples(table)
    drawn = {
        name: bootstrap(table, len(classes), ious, resamples, protocol=protocol)
        for name, ious in _IOUS.items()
    }
    labels = table.object_label[~table.object_ignored]
    objects = np.bincount(labels, minlength=len(classes))
    overall = {name: one.interval() for name, one in drawn.items()}
    return EvaluationSummary(
        images=table.images,
        objects=len(labels),
        resamples=resamples,
        intervals={name: one for name, one in overall.items() if not math.isnan(one.value)},
        classes={
            name: ClassSummary(
                objects=int(objects[label]),
                ap=drawn["ap"].class_interval(label) if objects[label] else None,
            )
            for label, name in enumerate(classes)
        },
    )


def affordable_resamples(table: MatchTable) -> int:
    """Return how often the images of a table are resampled: less often those of a large one."""
    affordable = int(_MAX_WORK / max(1, len(table.label)))
    return min(RESAMPLES, max(_MIN_RESAMPLES, affordable))
