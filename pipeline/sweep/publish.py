"""Write the answer of a sweep: files in its folder, its MLflow run, copies for the next command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pipeline.storage.document import Document
from pipeline.storage.durable import write_durably
from pipeline.storage.folder import Storage
from pipeline.storage.redact import mask, mask_tree
from pipeline.sweep.documents import SweepReport, TrialTable
from pipeline.sweep.page import render_files
from pipeline.tracking import connect

RECIPE, TRIALS, STATEMENT = "best.yaml", "trials.json", "statement.json"
_NOTE = "mlflow.note.content"  # the tag that MLflow shows as the description of a run


def publish(report: SweepReport, storage: str, tracking_uri: str, run_id: str) -> dict[str, str]:
    """Write all files, to the folder or URI of the sweep and to its MLflow run.

    Returns the path of each file but charts by name: where the storage is not local, that of a copy
    in the working directory. Raises OSError.
    """
    files = {
        TRIALS: _json(TrialTable(trials=report.trials)),
        STATEMENT: _json(report.statement),
        RECIPE: report.recipe,
    }
    client, paths = connect(tracking_uri), {}
    # The page is rendered when the rest is stored.
    for name, text in chain(files.items(), _rendered(report, run_id)):
        Storage(storage).write(name, text.encode())
        client.log_text(run_id, text, name)
        if name.startswith("charts/"):  # which the page contains
            continue
        path = Path(storage) / name
        if "://" in storage:
            path = Path.cwd() / f"{report.sweep}-{name}"
            write_durably(path, text.encode())
        paths[name] = str(path)
    client.set_tag(run_id, _NOTE, "\n\n".join(map(mask, report.statement.sentences)))
    score = _score(report)
    if score is not None:
        client.log_metric(run_id, report.metric, score)
    print(f"recipe of the sweep: {paths[RECIPE]}", file=sys.stderr, flush=True)
    return paths


def _rendered(report: SweepReport, run_id: str) -> Iterator[tuple[str, str]]:
    yield from render_files(report, {"MLflow run": run_id}).items()


def _score(report: SweepReport) -> float | None:
    """Return the score of the recommended point: the mean over seeds if it was confirmed."""
    winner = report.statement.winner
    arm = report.statement.arm(winner)
    if arm is not None:
        return arm.score.value
    return next((trial.best for trial in report.trials if trial.name == winner), None)


def _json(document: Document) -> str:
    return json.dumps(mask_tree(document.model_dump(mode="json")), indent=1)
