"""What a sweep has found: the table of its trials and the recipe of the best."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.config import Config, set_dotted
from pipeline.errors import TrainingFailed
from pipeline.progress import counted
from pipeline.storage.document import Document
from pipeline.storage.redact import mask, mask_tree
from pipeline.trials.trial_records import Params, TrialRecords, TrialState


@dataclass(frozen=True)
class Trial:
    """One row of the table of results."""

    name: str
    params: Params
    best: float | None  # best score; None if none was reported
    epochs: float  # epochs trained
    status: TrialState
    run_id: str | None  # of MLflow
    error: str = ""


class TrialTable(Document):
    """``trials.json`` of a sweep's MLflow run: all trials, best first."""

    trials: list[Trial]


def make_table(config: Config, records: TrialRecords, runs: Mapping[str, Any]) -> list[Trial]:
    """Return a row per trial, the best first: of those that finished, if any did."""
    sign = -1.0 if config.sweep.mode == "max" else 1.0
    states: list[TrialState] = ["finished", "stopped early", "unfinished", "failed"]
    rows = [
        Trial(
            name=record.name,
            params=record.params,
            best=record.best(config.sweep.mode),
            epochs=record.epochs,
            status=record.state,
            run_id=runs[record.name].info.run_id if record.name in runs else None,
            error=record.error,
        )
        for record in records.all.values()
    ]
    return sorted(
        rows,
        key=lambda row: (
            row.best is None,
            states.index(row.status),
            sign * (row.best or 0.0),
            row.name,
        ),
    )


def check_all_succeeded(trials: Sequence[Trial], limit: str | None, best_yaml: str) -> None:
    """Raise TrainingFailed if trials failed. Print the limit that has ended the sweep, if any."""
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed:
        first = failed[0]
        raise TrainingFailed(
            f"{len(failed)} of {counted(len(trials), 'trial')} failed, the first: {first.name}: "
            f"{first.error}; {best_yaml} is the best of the others; run the same command with the "
            "same --run to retry them"
        )
    if limit:
        print(f"the sweep ended at {limit}", file=sys.stderr, flush=True)


def best_recipe(config: Config, best: Trial, trials: int, sweep_name: str) -> str:
    """Return the recipe of a sweep with the values of its best trial, and secrets masked."""
    tree = config.model_dump(mode="json", exclude_defaults=True, exclude={"sweep": True})
    if config.tracking.uri and mask(config.tracking.uri) != config.tracking.uri:
        del tree["tracking"]["uri"]  # it is then read from the environment, as is
    for field, value in best.params.items():
        set_dotted(tree, field, value)
    state = "" if best.status == "finished" else f", {best.status} after {best.epochs:g} epochs"
    header = (
        f"# Best of {trials} trials of the sweep {sweep_name}: "
        f"{config.sweep.metric} {best.best:.4f} (trial {best.name}{state}).\n"
        "# Train with: python -m jobs.train --config FILE\n"
    )
    return header + yaml.safe_dump(mask_tree(tree), sort_keys=False)
