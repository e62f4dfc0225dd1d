"""Findings about boxes: copies, sizes, and the anchors that they need."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.reports.doctor.anchor_fit import FIT_IOU, AnchorFit
from pipeline.reports.doctor.finding import MAX_LISTED_NAMES, Finding, Severity, percent
from pipeline.reports.doctor.statistics import NEAR_IOU, BoxPairs, Statistics

MAX_MISSED = 0.1  # share of objects without an anchor that fits, above which a training suffers
MIN_GAIN = 0.01  # of that share, from which other anchors are proposed


def box_findings(found: Statistics) -> Iterator[Finding]:
    """Yield findings about boxes that are copies of others, or nearly."""

    def pairs(check: str, counts: BoxPairs, what: str, remedy: str, limit: float) -> list[Finding]:
        if not counts.pairs:
            return []
        severity: Severity = "warning" if counts.pairs > limit * found.objects else "note"
        text = f"pairs of boxes in one image that {what}: {counts.pairs}"
        examples = [f"for example in {', '.join(counts.examples)}"]
        return [Finding(severity, check, text, remedy, examples)]

    yield from pairs(
        "equal_boxes",
        found.equal,
        "are equal, with the same class",
        "remove the copies: an object that is labelled twice counts twice",
        0.0,
    )
    yield from pairs(
        "nearly_equal_boxes",
        found.near,
        f"are nearly equal (IoU from {NEAR_IOU:g}), with the same class",
        "look whether one object was labelled twice; NMS keeps only one box of such a pair",
        0.01,
    )
    yield from pairs(
        "boxes_of_two_classes",
        found.two_classes,
        f"are nearly equal (IoU from {NEAR_IOU:g}), with different classes",
        "look whether one of the classes is a mistake",
        0.01,
    )


def size_findings(found: Statistics) -> Iterator[Finding]:
    """Yield a finding if objects are small in the input."""
    size, total = found.image_size, found.objects
    below_4, below_8 = found.small[4, size], found.small[8, size]
    if below_8 <= 0.005 * total:
        return
    severe = below_4 > total / 100 or below_8 > total / 20
    larger = [f"{percent(found.small[8, side], total)} at {side} px" for side in found.inputs[1:]]
    yield Finding(
        "warning" if severe else "note",
        "small_objects",
        f"{percent(below_8, total)} of the objects are smaller than 8 px at an input of {size} px, "
        f"{percent(below_4, total)} smaller than 4 px",
        "use a larger model.image_size, or cut the images into tiles; what is smaller than 8 px, "
        "the finest stride, is hardly ever found",
        [f"smaller than 8 px: {', '.join(larger)}"],
    )


def anchor_findings(found: Statistics, fitted: AnchorFit | None) -> Iterator[Finding]:
    """Yield a finding if objects have no anchor that fits; ``fitted`` are better anchors."""
    share = found.missed / found.objects if found.objects else 0.0
    if share <= 0.02:
        return
    classes, counts = found.manifest.classes, found.objects_per_class
    shares = found.missed_per_class / np.maximum(counts, 1)
    worst = [c for c in np.argsort(-shares, kind="stable").tolist() if found.missed_per_class[c]]
    frequent = [c for c in worst if counts[c] >= 10] or worst
    shown = [
        f"{classes[c]} {percent(found.missed_per_class[c], counts[c])} of {counts[c]}"
        for c in frequent[:MAX_LISTED_NAMES]
    ]
    details = [f"worst classes: {', '.join(shown)}"]
    if fitted:
        remedy = (
            f"these fit better, with {percent(fitted.missed, 1)} left: {fitted.shapes}; "
            "--anchors fit sets them in the recipe"
        )
    else:
        remedy = "no others of the same number fit much better"
    yield Finding(
        "warning" if share > MAX_MISSED else "note",
        "anchor_fit",
        f"{percent(found.missed, found.objects)} of the objects have no anchor with an IoU of "
        f"{FIT_IOU:g} or more",
        f"{remedy}; a larger model.image_size or more model.anchor_scales help, too",
        details,
        [classes[c] for c in worst],
    )
