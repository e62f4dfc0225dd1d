"""Trials that are all known in advance, as those of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from pipeline.training.stop import StopSignal
from pipeline.trials.driver import run_trials
from pipeline.trials.limits import Limits
from pipeline.trials.trial import TrialSettings
from pipeline.trials.trial_records import Params, TrialRecord, TrialRecords

_ENDED = ("finished", "stopped early")


def train_given(
    settings: TrialSettings,
    trials: Mapping[str, Params],
    records: TrialRecords,
    stop: StopSignal,
) -> None:
    """Train trials, given by name, that have not ended; none is stopped early.

    Those that were running or failed resume from their checkpoints. The records say how each has
    ended.
    """
    searcher = GivenTrials(trials, records)
    if not searcher.is_exhausted():
        limits = Limits(settings.config, records, stop)
        run_trials(settings, searcher, FIFOScheduler(), limits, records)


class GivenTrials(Searcher):
    """Suggests ``{"name": NAME, "params": {...}}`` for each trial that has not ended."""

    def __init__(self, trials: Mapping[str, Params], records: TrialRecords) -> None:
        super().__init__()
        self._records = records
        known = records.all
        self._left = [
            TrialRecord(name=name, params=params) if name not in known else known[name]
            for name, params in trials.items()
            if name not in known or known[name].state not in _ENDED
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def is_exhausted(self) -> bool:
        """Return whether no trial is left to start."""
        return not self._left

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial, or FINISHED."""
        if not self._left:
            return Searcher.FINISHED
        record = self._left.pop(0)
        self._records.save(record.model_copy(update={"state": "unfinished", "error": ""}))
        return {"name": record.name, "params": record.params}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Accept the metric and mode, which change nothing."""
        return True

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: there is nothing to learn."""

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file for Tune: all state is in the records."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: all state is in the records."""
