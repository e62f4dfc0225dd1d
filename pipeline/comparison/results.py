"""The result of a comparison as text and as files, in its folder and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.comparison.documents import ArmResult, Comparison
from pipeline.comparison.page import PAGE_NAME, render_files
from pipeline.storage.durable import write_durably
from pipeline.storage.folder import Storage
from pipeline.storage.redact import mask, mask_tree
from pipeline.tracking import connect
from pipeline.training.run_record import RunRecord

RESULT_FILE, TABLE_FILE = "comparison.json", "table.txt"
_SIZES = ("small", "medium", "large")


def as_text(result: Comparison) -> str:
    """Return the table, the assignment's health, the differences and the statement."""
    parts = [table_lines(result), health_lines(result), _pair_lines(result), result.sentences]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def table_lines(result: Comparison) -> list[str]:
    """Return a heading and a row per arm; ``-`` where a figure is not known."""
    interval = f"{result.metric} 95% interval"
    rows = [["arm", "ap", "ap50", "ap75", interval, "spread", "seeds", "s/step"]]
    for arm in result.table:
        rows.append(
            [
                arm.name,
                *(_number(value) for value in (arm.ap, arm.ap50, arm.ap75)),
                _interval(arm.low, arm.high),
                _number(arm.spread),
                _seeds(arm, result),
                _number(arm.seconds_per_step, 3),
            ]
        )
    return aligned(rows)


def health_lines(result: Comparison) -> list[str]:
    """Return what the assigners did at the end of the trainings, a row per arm, if it is known."""
    positives = "positives/object " + ", ".join(_SIZES)
    rows = [["arm", positives, "unmatched", "task overlap", "score-IoU correlation"]]
    for arm in result.table:
        health = arm.health
        by_size = (health.get(f"cls_positives_per_object_{size}") for size in _SIZES)
        others = ("objects_without_cls_positive", "task_overlap", "score_iou_correlation")
        rows.append(
            [
                arm.name,
                ", ".join(_number(value, 1) for value in by_size),
                *(_number(health.get(key), 2) for key in others),
            ]
        )
    return aligned(rows) if any(arm.health for arm in result.table) else []


def _pair_lines(result: Comparison) -> list[str]:
    if not result.pairs:
        return []
    rows = [["difference", result.metric, "95% interval, all at once", ""]]
    for pair in result.pairs:
        rows.append(
            [
                f"{pair.candidate} - {pair.reference}",
                f"{pair.gain:+.4f}",
                f"{pair.low:+.4f} to {pair.high:+.4f}",
                "distinguishable" if pair.distinguishable else "",
            ]
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns begin at the same positions."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in lines]


def record_result(result: Comparison, record: RunRecord, uri: str, run_id: str) -> str:
    """Write the files of a result to the folder and the MLflow run; return the path of its page.

    Raises OSError, LeaseLostError.
    """
    record.check_lease()
    masked = json.dumps(mask_tree(result.model_dump(mode="json")), indent=1)
    files = {RESULT_FILE: masked, TABLE_FILE: mask(as_text(result)) + "\n"}
    files |= render_files(result, {"MLflow run": run_id})
    client, storage = connect(uri), Storage(record.uri)
    for name, text in files.items():
        storage.write(name, text.encode())
        client.log_text(run_id, text, name)
    path = Path(record.uri) / PAGE_NAME
    if "://" in record.uri:  # a copy for the user of this machine
        path = Path.cwd() / f"{record.name}-{PAGE_NAME}"
        write_durably(path, files[PAGE_NAME].encode())
    return str(path)


def _seeds(arm: ArmResult, result: Comparison) -> str:
    missing = len(result.seeds) - len(arm.seeds)
    return f"{len(arm.seeds)}" + (f", {missing} failed" if missing else "")


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
