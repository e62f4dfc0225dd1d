"""The table of a sweep's trials, and its figures on one line of JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.config import Config
from pipeline.errors import TrainingFailed
from pipeline.progress import counted
from pipeline.sweep.documents import DEFAULT, Statement, Trial
from pipeline.trials.outcome import TrialOutcome
from pipeline.trials.trial_records import Params, TrialRecord, TrialRecords, TrialState

_STATES: list[TrialState] = ["finished", "stopped early", "unfinished", "failed"]


def make_table(
    config: Config,
    records: TrialRecords,
    runs: Mapping[str, Any] | None = None,
    outcomes: Mapping[str, TrialOutcome] | None = None,
    steps_per_epoch: float = 0.0,
) -> list[Trial]:
    """Return a row per trial, the best first: of those that finished, if any did.

    ``runs`` are their MLflow runs and ``outcomes`` what their selected checkpoints are worth, both
    by name.
    """
    rows = [
        _row(config, record, runs or {}, (outcomes or {}).get(record.name), steps_per_epoch)
        for record in records.all.values()
    ]
    sign = -1.0 if config.sweep.mode == "max" else 1.0
    return sorted(
        rows,
        key=lambda row: (
            row.best is None,
            _STATES.index(row.status),
            sign * (row.best or 0.0),
            row.name,
        ),
    )


def _row(
    config: Config,
    record: TrialRecord,
    runs: Mapping[str, Any],
    outcome: TrialOutcome | None,
    steps_per_epoch: float,
) -> Trial:
    row = Trial(
        name=record.name,
        params=record.params,
        best=record.best(config.sweep.mode),
        epochs=record.epochs,
        status=record.state,
        run_id=runs[record.name].info.run_id if record.name in runs else None,
        error=record.error,
        curve=record.scores,
    )
    if outcome is None:
        return row
    pace, batch = outcome.seconds_per_step, config.train.batch_size
    steps = record.epochs * steps_per_epoch * batch / record.params.get("train.batch_size", batch)
    return replace(
        row,
        ap=outcome.metrics.get("ap"),
        ap50=outcome.metrics.get("ap50"),
        ap75=outcome.metrics.get("ap75"),
        low=outcome.low,
        high=outcome.high,
        metric=outcome.metric,
        seconds=None if pace is None else round(pace * steps, 1),
        postprocessing=outcome.postprocessing,
    )


def best_figures(trials: Sequence[Trial], statement: Statement, params: Params) -> dict[str, Any]:
    """Return ``best`` of the JSON line: the recommended point, its AP and the interval of this.

    That is over images and seeds if it was confirmed, else over images.
    """
    figures = {"name": statement.winner, "params": params, "metric": statement.metric}
    arm = statement.arm(statement.winner)
    if arm is not None:
        return {**figures, "ap": arm.score.value, "interval": [arm.score.low, arm.score.high]}
    row = next(trial for trial in trials if trial.name == statement.winner)
    known = row.low is not None and statement.metric == f"val/{row.metric}"
    interval = [row.low, row.high] if known else None
    return {**figures, "ap": row.best, "interval": interval}


def against_default(statement: Statement) -> dict[str, Any] | None:
    """Return ``against_default`` of the JSON line, of the winner or of the best confirmed point.

    None without confirmation.
    """
    names = [arm.name for arm in statement.arms if arm.name != DEFAULT]
    winner = [statement.winner] if statement.winner in names else names[:1]
    pair = statement.pair(winner[0]) if winner else None
    if pair is None:
        return None
    return {
        "name": pair.candidate,
        "gain": pair.gain,
        "low": pair.low,
        "high": pair.high,
        "distinguishable": pair.distinguishable,
    }


def check_all_succeeded(records: Sequence[TrialRecord], limit: str | None, best_yaml: str) -> None:
    """Raise TrainingFailed if trainings failed. Print the limit that ended the search, if any."""
    failed = [record for record in records if record.state == "failed"]
    if failed:
        first = failed[0]
        raise TrainingFailed(
            f"{len(failed)} of {counted(len(records), 'trial')} failed, the first: {first.name}: "
            f"{first.error}; {best_yaml} is what the others show; run the same command with the "
            "same --run to retry them"
        )
    if limit:
        print(f"the search ended at {limit}", file=sys.stderr, flush=True)
