"""Keeps the records of the trials while they run, and prints one line on stderr per event."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback

from pipeline.storage.redact import mask
from pipeline.training.error_hints import LOST_PROCESS
from pipeline.trials.trial import MISTAKE
from pipeline.trials.trial_records import TrialRecord, TrialRecords, TrialState

_FAILURE = "Failure # "  # begins the heading of each failure in the file of Tune


class TrialReporter(Callback):
    """Records scores and ends of trials, and prints them.

    ``has_finished`` returns whether the training of a trial has reached its end, or None if that is
    unknown, and ``is_ending`` whether the whole sweep is being stopped: then trials are not stopped
    early but unfinished.
    """

    def __init__(
        self,
        metric: str,
        records: TrialRecords,
        has_finished: Callable[[str], bool | None],
        is_ending: Callable[[], bool],
    ) -> None:
        self._metric, self._records = metric, records
        self._has_finished, self._is_ending = has_finished, is_ending

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the values that the trial tries."""
        record = self._of(trial)
        values = ", ".join(f"{key} {_short(value)}" for key, value in record.params.items())
        how = f"resumes after epoch {record.epochs:g}" if record.scores else "starts"
        _print(f"trial {record.name} {how}: {values}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record and print the score that the trial has reached."""
        if self._metric in result:
            epoch, score = float(result.get("epoch", 0.0)), float(result[self._metric])
            self._records.save(self._of(trial).with_score(epoch, score))
            name = trial.config["name"]
            _print(f"trial {name} epoch {epoch:.1f}: {self._metric} {score:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record and print that the trial has finished, was stopped early or cannot be trained."""
        name = trial.config["name"]
        if mistake := (trial.last_result or {}).get(MISTAKE):
            self._end(trial, "failed", mistake)
            return
        finished = self._has_finished(name)
        if finished:
            self._end(trial, "finished")
        elif finished is not None and not self._is_ending():
            self._end(trial, "stopped early")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print why the trial failed and is retried."""
        _print(f"trial {trial.config['name']} is retried after: {_reason(trial)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record and print why the trial failed for good."""
        self._end(trial, "failed", _reason(trial))

    def _of(self, trial: Any) -> TrialRecord:
        return self._records.all[trial.config["name"]]

    def _end(self, trial: Any, state: TrialState, error: str = "") -> None:
        record = self._of(trial).model_copy(update={"state": state, "error": error})
        self._records.save(record)
        ended = sum(item.state != "unfinished" for item in self._records.all.values())
        because = f": {error}" if error else ""
        _print(f"trial {record.name} {state}{because} ({ended} ended)")


def _reason(trial: Any) -> str:
    """Return the last failure, from the driver; `Trial.get_error` may return an earlier one."""
    text = Path(trial.error_file).read_text().rpartition(_FAILURE)[2] if trial.error_file else ""
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    if not lines or lines[0].startswith("The actor "):  # Ray's description of a lost process
        return f"its process {LOST_PROCESS}"
    return mask(re.sub(r"^[\w.]+: ", "", lines[-1]))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(text: str) -> None:
    print(mask(text), file=sys.stderr, flush=True)
