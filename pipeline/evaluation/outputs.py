"""Write the files of an evaluation: its figures, its page, and labels that may be wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import EvaluateConfig
from pipeline.errors import UserError
from pipeline.evaluation.findings import Findings
from pipeline.evaluation.model_evaluation import ModelEvaluation
from pipeline.evaluation.page import render_page
from pipeline.evaluation.page.render import pictured
from pipeline.evaluation.samples import FoundSamples
from pipeline.evaluation.suspects_file import suspects_as_coco
from pipeline.storage.durable import write_durably
from pipeline.storage.redact import mask

FIGURES, PAGE, SUSPECTS = "evaluation.json", "evaluation.html", "suspects.json"


class Subject(NamedTuple):
    """What is evaluated: the address of the set, how boxes are selected, and which code did it."""

    data: str
    settings: EvaluateConfig
    at: str
    revision: str | None


def write_outputs(
    folder: Path, found: ModelEvaluation, findings: Findings, subject: Subject
) -> dict[str, str]:
    """Write `FIGURES`, `PAGE` and `SUSPECTS` to a folder. Return their paths by kind.

    Each file is complete or unchanged. Raises UserError if one cannot be written.
    """
    samples = FoundSamples(subject.data, pictured(found, findings))
    table = found.evaluation.table
    known = [s for s in findings.suspects if table.image_ids[s.image] in samples]
    suspects = suspects_as_coco(
        table, known, samples.samples, found.classes, found.data.category_ids
    )
    page = render_page(found, findings, samples, facts(found, subject))
    files = {
        "figures": (FIGURES, json.dumps(figures(found, findings, subject), indent=1)),
        "page": (PAGE, page),
        "suspects": (SUSPECTS, json.dumps(suspects, indent=1)),
    }
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.values():
            path = folder / name
            write_durably(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return {kind: str(folder / name) for kind, (name, _) in files.items()}


def figures(found: ModelEvaluation, findings: Findings, subject: Subject) -> dict[str, Any]:
    """Return the figures with what they belong to, for JSON."""
    return {
        "model": mask(found.model),
        "data": found.data.name,
        "split": found.data.split,
        "fingerprint": found.data.content_hash,
        "at": subject.at,
        "revision": subject.revision,
        "seconds": asdict(found.evaluation.seconds),
        **findings.as_json(),
    }


def facts(found: ModelEvaluation, subject: Subject) -> dict[str, str]:
    """Return what was evaluated and how, as texts by name."""
    settings = subject.settings
    limits = f"{settings.max_detections} per image, score from {settings.score_threshold:g}"
    nms = f"IoU {settings.nms_iou:g}{', over all classes' if settings.class_agnostic else ''}"
    return {
        "model": mask(found.model),
        "data set": f"{found.data.name} {found.data.split}, {mask(subject.data)}",
        "content hash": found.data.content_hash,
        "protocol": settings.protocol,
        "detections": limits,
        "non-maximum suppression": nms,
        "evaluated at": subject.at,
        "code revision": subject.revision or "unknown",
    }
