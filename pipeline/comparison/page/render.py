"""Render a comparison as one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.comparison.documents import ArmResult, Comparison
from pipeline.progress import counted
from pipeline.reports.charts.drawing import as_file
from pipeline.reports.page import render_template
from pipeline.reports.page.arms import (
    METRIC_TITLES,
    ArmFigures,
    Difference,
    arm_symbols,
    arms_chart,
    differences_chart,
    metric_title,
)
from pipeline.storage.redact import mask

PAGE_NAME = "report.html"
_HEALTH_TITLES = {
    "cls_positives_per_object_small": "positives per small object",
    "cls_positives_per_object_medium": "medium",
    "cls_positives_per_object_large": "large",
    "objects_without_cls_positive": "objects without",
    "task_overlap": "task overlap",
    "score_iou_correlation": "score-IoU correlation",
}


def render_page(result: Comparison, facts: Mapping[str, str]) -> str:
    """Return the page of a comparison. ``facts``, such as its MLflow run, end it as a table."""
    metric = metric_title(result.metric)
    arms = [_figures(arm, result.metric) for arm in result.table]
    return render_template(
        Path(__file__).with_name("comparison.html.j2"),
        result=result,
        metric=metric,
        arms=arms,
        columns={key: title for key, title in METRIC_TITLES.items() if key != result.metric},
        health={
            key: title
            for key, title in _HEALTH_TITLES.items()
            if any(key in arm.health for arm in result.table)
        },
        differences=_differences(result),
        best=next((arm for arm in arms if arm.value is not None), None),
        charts=_charts(result),
        symbols=arm_symbols(),
        failed={arm.name: arm.failed for arm in result.table if arm.failed},
        mask=mask,
        facts={
            "comparison": result.run,
            "data set": f"{result.data}, {counted(result.images, 'image')}",
            "epochs": f"{result.epochs:g}",
            "seeds": ", ".join(map(str, result.seeds)),
            **({"folds": str(result.folds)} if result.folds else {}),
            "protocol": result.protocol,
            "time": f"{timedelta(seconds=round(result.seconds))}, of the last command",
            **facts,
        },
    )


def render_files(result: Comparison, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the page as ``report.html``, and each chart as ``charts/NAME.svg``, by path."""
    charts = {f"charts/{name}.svg": as_file(chart) for name, chart in _charts(result).items()}
    return {PAGE_NAME: render_page(result, facts), **charts}


def _charts(result: Comparison) -> dict[str, str]:
    """Return the charts by name; one without a score to draw is absent."""
    metric, charts = metric_title(result.metric), {}
    if any(arm.scores for arm in result.table):
        charts["arms"] = arms_chart([_figures(arm, result.metric) for arm in result.table], metric)
    if result.pairs:
        charts["differences"] = differences_chart(_differences(result), metric)
    return charts


def _figures(arm: ArmResult, metric: str) -> ArmFigures:
    means = {"ap": arm.ap, "ap50": arm.ap50, "ap75": arm.ap75}
    return ArmFigures(
        name=arm.name,
        value=means[metric],
        low=arm.low,
        high=arm.high,
        seeds=dict(zip(arm.seeds, arm.scores, strict=True)),
        metrics={key: value for key, value in means.items() if value is not None},
        spread=arm.spread,
        seconds_per_step=arm.seconds_per_step,
        text=mask(", ".join(f"{field}={_text(value)}" for field, value in arm.params.items())),
    )


def _differences(result: Comparison) -> list[Difference]:
    return [
        Difference(
            pair.candidate, pair.reference, pair.gain, pair.low, pair.high, pair.distinguishable
        )
        for pair in result.pairs
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
