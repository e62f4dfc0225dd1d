"""The record of a decision about a version: an artifact that is written before the alias moves.

It belongs to a separate run. That of a promotion or rollback is finished when the aliases have
moved, so that a run that is not finished shows a move that was not completed.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import OutageError, UserError
from pipeline.promotion.gate import Verdict
from pipeline.registry.experiment import experiment_of
from pipeline.storage.document import Document
from pipeline.storage.redact import first_line
from pipeline.tracking import is_rejected

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "decision.json"
EXPERIMENT = "promotions"  # for versions whose run is gone
_ABANDONED_SECONDS = 3600.0  # from the record to the move it takes minutes; clocks may differ
VerdictName = Literal["promoted", "refused", "unchanged", "rolled back"]
MOVES: tuple[VerdictName, ...] = ("promoted", "rolled back")  # verdicts that move the champion


class Decision(Document):
    """What was decided about a version, by whom, and on which figures."""

    FORMAT_VERSION: ClassVar[int] = 1

    model: str = Field(description="registered model")
    verdict: VerdictName
    reasons: list[str]
    notes: list[str] = Field(default_factory=list, description="what qualifies the verdict")
    version: int = Field(description="that was decided about")
    champion_before: int | None
    previous_before: int | None
    forced: bool = False
    dry_run: bool = False
    by: str
    at: str = Field(description="UTC, ISO 8601")
    machine: str
    data: dict[str, Any] | None = Field(
        default=None, description="name, content hash and images of the evaluation set"
    )
    gate: dict[str, Any] | None = Field(default=None, description="the section promote")
    figures: dict[str, Any] | None = Field(
        default=None, description="AP of both, gain, classes, latency: values with intervals"
    )
    revision: str | None = Field(default=None, description="of the code that decided")


def figures(verdict: Verdict) -> dict[str, Any]:
    """Return the figures of a verdict for JSON, which has no NaN."""
    content = asdict(verdict)
    for name in ("passed", "reasons", "notes"):
        del content[name]
    return {name: _plain(value) for name, value in content.items() if value not in (None, [])}


def write_record(client: MlflowClient, decision: Decision) -> str:
    """Write a decision as an artifact of a new run. Return its URI.

    The run belongs to the experiment of the version's training. If aliases are to move it stays
    open until `end_record`. Raises UserError or OutageError if the artifact cannot be written; the
    run, if there is one, is marked as failed.
    """
    name = f"{decision.verdict} {decision.model} {decision.version}"
    tags = {
        "mlflow.runName": name,
        "promotion.model": decision.model,
        "promotion.version": str(decision.version),
        "promotion.verdict": decision.verdict,
        "promotion.by": decision.by,
    }
    run_id = None
    try:
        version = client.get_model_version(decision.model, str(decision.version))
        experiment = experiment_of(client, version, EXPERIMENT)
        run_id = client.create_run(experiment, tags=tags).info.run_id
        for key, value in _metrics(decision.figures or {}).items():
            client.log_metric(run_id, key, value)
        client.log_text(run_id, decision.encode().decode(), FILE)
        if decision.verdict not in MOVES:
            client.set_terminated(run_id)
    except Exception as error:  # stores raise errors of many types
        if run_id is not None:
            with contextlib.suppress(Exception):
                client.set_terminated(run_id, "FAILED")
        kind = UserError if is_rejected(error) else OutageError
        raise kind(
            f"{decision.model}: the decision cannot be recorded, and the aliases stay: "
            f"{first_line(error)}"
        ) from error
    return f"runs:/{run_id}/{FILE}"


def end_record(client: MlflowClient, record: str, status: str) -> None:
    """Mark the run of a record: FINISHED after the move, FAILED if it was undone or not begun."""
    client.set_terminated(_run_id(record), status)


def is_open(client: MlflowClient, record: str) -> bool:
    """Return whether the move of a record is not completed; False if its run was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(_run_id(record)).info
    except MlflowException as error:
        if is_rejected(error):
            return False
        raise
    return bool(info.status == "RUNNING" and info.lifecycle_stage == "active")


def abandoned_records(client: MlflowClient, model: str) -> list[str]:
    """Return the open records of a model's decisions that are older than any promotion takes."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    until = int((time.time() - _ABANDONED_SECONDS) * 1000)
    runs = client.search_runs(
        experiments,
        "attributes.status = 'RUNNING' and tags.`promotion.verdict` LIKE '%' and "
        f"attributes.start_time <= {until}",
    )
    # Compared here, since a name may contain quotes.
    found = [run for run in runs if run.data.tags.get("promotion.model") == model]
    return [f"runs:/{run.info.run_id}/{FILE}" for run in found]


def read_record(client: MlflowClient, record: str) -> Decision:
    """Read a decision. Raises errors of the store, and DocumentError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client.download_artifacts(_run_id(record), FILE, folder))
        return Decision.parse(path.read_bytes(), record)


def _run_id(record: str) -> str:
    return record.removeprefix("runs:/").split("/")[0]


def _metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name in ("candidate_ap", "champion_ap", "gain"):
        for part, value in (figures.get(name) or {}).items():
            if value is not None:
                found[f"{name}/{part}"] = float(value)
    return found


def _plain(value: Any) -> Any:
    return (
        json.loads(json.dumps(value), parse_constant=lambda _: None) if _has_nan(value) else value
    )


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    return isinstance(value, list) and any(map(_has_nan, value))
