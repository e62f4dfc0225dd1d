"""Examine a shard set before a training, for people and for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from model.anchor_shapes import AnchorShapes
from pipeline.config import Config
from pipeline.data.shards.reader import ShardSet
from pipeline.progress import counted
from pipeline.reports.doctor.anchor_fit import (
    FIT_IOU,
    AnchorFit,
    best_ious,
    fit_anchors,
    missed_share,
)
from pipeline.reports.doctor.box_findings import (
    MIN_GAIN,
    anchor_findings,
    box_findings,
    size_findings,
)
from pipeline.reports.doctor.finding import SEVERITIES, Finding, percent
from pipeline.reports.doctor.fingerprints import Fingerprints
from pipeline.reports.doctor.set_findings import (
    class_findings,
    common_findings,
    conversion_findings,
    sample_findings,
    split_findings,
)
from pipeline.reports.doctor.statistics import SIDE_NAMES, Statistics, collect, read_samples, sides

WIDTH = 100


class Diagnosis(NamedTuple):
    """Statistics and findings of a set, for the anchors of a configuration."""

    uri: str
    statistics: Statistics
    shapes: AnchorShapes
    fitted: AnchorFit | None
    """Anchors that fit more objects; None if there are none."""
    findings: list[Finding]

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def examine(uri: str, config: Config, compare_with: Sequence[str] = ()) -> Diagnosis:
    """Read the annotations of a set and of other splits.

    The set is judged as the training set of this configuration. Raises UserError if there is no
    usable shard set, OutageError if a store does not respond.
    """
    others = {other: ShardSet(other) for other in compare_with}
    shapes, size = config.model.anchor_shapes, config.model.image_size
    known = Fingerprints() if others else None
    found = collect(ShardSet(uri), shapes, size, config.data.fit, known)
    fitted = None
    if found.missed > MIN_GAIN * found.objects:
        best = fit_anchors(found.kept_boxes, shapes, size)
        if best.missed <= missed_share(found.kept_boxes, shapes, size) - MIN_GAIN:
            fitted = best
    findings = [
        *sample_findings(found),
        *conversion_findings(found.manifest),
        *split_findings(found, {name: other.manifest for name, other in others.items()}),
        *class_findings(found),
        *box_findings(found),
        *size_findings(found),
        *anchor_findings(found, fitted),
    ]
    for name, other in others.items():
        if known is not None and other.manifest.content_hash != found.manifest.content_hash:
            common = known.common(_fingerprints(other))
            findings += common_findings(name, other.manifest.samples, common)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(uri, found, shapes, fitted, findings)


def _fingerprints(shards: ShardSet) -> Fingerprints:
    found = Fingerprints()
    for sample in read_samples(shards, lambda reason: None):
        found.add(sample)
    return found


def format_text(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text for a terminal."""
    found, fitted = diagnosis.statistics, diagnosis.fitted
    lines = [
        f"{diagnosis.uri}: {counted(found.samples, 'image')}, "
        f"{counted(found.objects, 'object')}, classes: {len(found.manifest.classes)}; "
        f"input {found.image_size} x {found.image_size} px ({found.fit})",
        f"anchors: {diagnosis.shapes}",
    ]
    if fitted:
        lines.append(f"fitted:  {fitted.shapes}")
    lines += ["", *_side_table(diagnosis)] if found.objects else []
    for finding in diagnosis.findings:
        texts = [finding.text, *finding.details, f"-> {finding.remedy}"]
        label = f"{finding.severity}:"
        lines.append("")
        for number, text in enumerate(texts):
            first = f"{label:<9}" if not number else " " * 9
            lines.append(
                textwrap.fill(
                    text,
                    WIDTH,
                    initial_indent=first,
                    subsequent_indent=" " * 9,
                    break_on_hyphens=False,
                    break_long_words=False,
                )
            )
    counts = ", ".join(counted(diagnosis.count(severity), severity) for severity in SEVERITIES)
    return "\n".join([*lines, "", counts])


def _side_table(diagnosis: Diagnosis) -> list[str]:
    """Return lines with the objects by size, and the share without an anchor that fits."""
    found, fitted = diagnosis.statistics, diagnosis.fitted
    title = f"  {'side at the input':<18}{'objects':>9}  {'no anchor of IoU ' + str(FIT_IOU):>20}"
    lines = [title + (f"{'fitted anchors':>16}" if fitted else "")]
    after = _missed_per_side(diagnosis) if fitted else None
    groups = [*SIDE_NAMES, "all"]
    objects = [*found.objects_per_side.tolist(), found.objects]
    missed = [*found.missed_per_side.tolist(), found.missed]
    for number, name in enumerate(groups):
        before = percent(missed[number], objects[number]) if objects[number] else ""
        line = f"  {name + ' px' * (name != 'all'):<18}{objects[number]:>9}  {before:>20}"
        if after is not None:
            line += f"{percent(after[number], 1) if objects[number] else '':>16}"
        lines.append(line)
    return lines


def _missed_per_side(diagnosis: Diagnosis) -> list[float]:
    """Return the shares that the fitted anchors miss, by side and of all objects that are kept."""
    assert diagnosis.fitted is not None
    found = diagnosis.statistics
    boxes = found.kept_boxes
    missed = best_ious(boxes, diagnosis.fitted.shapes, found.image_size) < FIT_IOU
    _, group = sides(boxes)
    parts = [missed[group == number] for number in range(len(SIDE_NAMES))]
    return [float(np.mean(part)) if len(part) else 0.0 for part in (*parts, missed)]


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as JSON for programs. Shares are between 0 and 1."""
    found, fitted = diagnosis.statistics, diagnosis.fitted
    per_class = zip(
        found.manifest.classes,
        found.objects_per_class.tolist(),
        found.images_per_class.tolist(),
        found.missed_per_class.tolist(),
        strict=True,
    )
    per_side = zip(
        SIDE_NAMES,
        found.objects_per_side.tolist(),
        found.missed_per_side.tolist(),
        strict=True,
    )
    return {
        "uri": diagnosis.uri,
        "samples": found.samples,
        "samples_without_objects": found.empty,
        "unreadable": found.unreadable,
        "objects": found.objects,
        "crowd_regions": found.crowd,
        "image_size": found.image_size,
        "fit": found.fit,
        "anchors": _anchors(diagnosis.shapes, found.missed / max(found.objects, 1)),
        "fitted_anchors": _anchors(fitted.shapes, fitted.missed) if fitted else None,
        "classes": {
            name: {"objects": objects, "images": images, "without_anchor": missed}
            for name, objects, images, missed in per_class
        },
        "sides": {
            f"{name} px": {"objects": objects, "without_anchor": missed}
            for name, objects, missed in per_side
        },
        "findings": [vars(finding) for finding in diagnosis.findings],
        **{f"{severity}s": diagnosis.count(severity) for severity in SEVERITIES},
    }


def _anchors(shapes: AnchorShapes, missed: float) -> dict[str, Any]:
    return {
        "anchor_base": shapes.base,
        "anchor_scales": list(shapes.scales),
        "anchor_ratios": list(shapes.ratios),
        "share_without_anchor": round(missed, 4),
    }
