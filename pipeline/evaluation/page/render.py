"""Render the findings of an evaluation as one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluation.findings import CONFIDENCE, ClassFindings, Findings
from pipeline.evaluation.model_evaluation import ModelEvaluation
from pipeline.evaluation.page.pictures import (
    Picture,
    draw_image,
    draw_suspect,
    rank_images,
    within,
)
from pipeline.evaluation.samples import FoundSamples
from pipeline.metrics.suspects import Suspect
from pipeline.reports.charts.drawing import PALETTE, legend_symbol
from pipeline.reports.charts.unit_axes import Series, bar, line_chart, reliability_chart
from pipeline.reports.page import render_template

PICTURE_BYTES = 4_000_000  # of all pictures; the rest of a page is below 1 MB
RANKED, SHOWN_SUSPECTS = 6, 8
_MAX_MATRIX = 20  # classes; of more, the most frequent confusions are listed
_MAX_LISTED = 30
METRIC_TITLES = {
    "ap": "AP, IoU 0.50 to 0.95",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP of small objects",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects",
    "ar_1": "recall, 1 detection per image",
    "ar_10": "recall, 10 detections per image",
    "ar_100": "recall, 100 detections per image",
    "ar_small": "recall of small objects",
    "ar_medium": "recall of medium objects",
    "ar_large": "recall of large objects",
}
_SUSPECT_TITLES = {
    "unlabelled": "Confident detections without an object",
    "wrong class": "Detections that disagree with the class of an object",
    "nothing there": "Objects that no detection comes near to",
}


class SuspectGroup(NamedTuple):
    """The suspects of one kind: how many there are, and pictures of the strongest."""

    title: str
    found: int
    pictures: list[Picture]


def render_page(
    found: ModelEvaluation,
    findings: Findings,
    samples: FoundSamples | None,
    facts: Mapping[str, str],
) -> str:
    """Return the page. Without ``samples`` it has no pictures; ``facts`` end it as a table."""
    worst, best, suspects = _pictures(found, findings, samples)
    charted = _charted(findings)
    return render_template(
        Path(__file__).with_name("evaluation.html.j2"),
        found=found,
        findings=findings,
        titles=METRIC_TITLES,
        confidence=f"{CONFIDENCE:.0%}",
        bar=bar,
        best_point=_best_point,
        charts=_charts(findings, charted),
        legend=[(legend_symbol(n), name) for n, (name, _) in enumerate(charted)],
        uncharted=len(findings.classes) + 1 - len(charted),
        matrix=_matrix(findings, found.classes),
        confusions=list(_confusions(findings, found.classes)),
        worst=worst,
        best=best,
        suspects=suspects,
        facts=facts,
        max_cost=max((kind.ap_cost for kind in findings.errors.values()), default=0.0),
    )


def pictured(found: ModelEvaluation, findings: Findings) -> list[str]:
    """Return the ids of the images that the page and the file of suspects need."""
    worst, best = rank_images(found.evaluation.table, findings.threshold, RANKED)
    numbers = {one.image for one in (*worst, *best)} | {one.image for one in findings.suspects}
    return [str(found.evaluation.table.image_ids[number]) for number in sorted(numbers)]


def _pictures(
    found: ModelEvaluation, findings: Findings, samples: FoundSamples | None
) -> tuple[list[Picture], list[Picture], list[SuspectGroup]]:
    table, classes = found.evaluation.table, found.classes
    drawn, budget = [], PICTURE_BYTES
    ranked = rank_images(table, findings.threshold, RANKED) if samples else ([], [])
    for counts in ranked:
        pictures = (
            draw_image(table, one, samples, classes, findings.threshold)
            for one in counts
            if samples and table.image_ids[one.image] in samples
        )
        kept, budget = within(pictures, budget)
        drawn.append(kept)
    groups = []
    for kind, title in _SUSPECT_TITLES.items():
        own: list[Suspect] = [suspect for suspect in findings.suspects if suspect.kind == kind]
        pictures = (
            draw_suspect(table, suspect, samples, classes)
            for suspect in own[:SHOWN_SUSPECTS]
            if samples and table.image_ids[suspect.image] in samples
        )
        kept, budget = within(pictures, budget)
        groups.append(SuspectGroup(title, len(own), kept))
    return drawn[0], drawn[1], groups


def _charted(findings: Findings) -> list[tuple[str, Any]]:
    """Return the names and curves to draw: all classes together, and the most frequent ones."""
    known = [one for one in findings.classes if one.curve is not None]
    frequent = sorted(known, key=lambda one: -one.objects)[: len(PALETTE) - 1]
    chosen: list[tuple[str, Any]] = [("all classes", findings.curve)] if findings.curve else []
    return chosen + [(one.name, one.curve) for one in known if one in frequent]


def _charts(findings: Findings, charted: list[tuple[str, Any]]) -> dict[str, str]:
    recall = [Series(name, c.recall, c.precision, c.best) for name, c in charted]
    f1 = [Series(name, c.threshold, c.f1, c.best) for name, c in charted]
    own = findings.calibration
    return {
        "pr": line_chart("Precision over recall at IoU 0.5", recall, "recall", "precision"),
        "f1": line_chart("F1 over the score threshold", f1, "score threshold", "F1"),
        "calibration": reliability_chart("Precision over score", own.score, own.precision),
    }


def _best_point(one: ClassFindings | Findings) -> dict[str, float] | None:
    if one.curve is None:
        return None
    names = ("threshold", "precision", "recall", "f1")
    return {name: float(getattr(one.curve, name)[one.curve.best]) for name in names}


def _matrix(findings: Findings, classes: list[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return rows of (class, counts with their share of the row); none for many classes."""
    if len(classes) > _MAX_MATRIX:
        return []
    rows = []
    for name, row in zip([*classes, "no object"], findings.confusion, strict=True):
        total = max(1, int(row.sum()))
        rows.append((name, [(int(value), float(value) / total) for value in row]))
    return rows


def _confusions(findings: Findings, classes: list[str]) -> Iterator[tuple[str, str, int]]:
    """Yield (class of the object, class of the detection, count) of the most frequent mix-ups."""
    cells = findings.confusion[:-1, :-1].copy()
    np.fill_diagonal(cells, 0)
    for cell in np.argsort(-cells, axis=None, kind="stable")[:_MAX_LISTED].tolist():
        row, column = divmod(cell, len(classes))
        if cells[row, column]:
            yield classes[row], classes[column], int(cells[row, column])
