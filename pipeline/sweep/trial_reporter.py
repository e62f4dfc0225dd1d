"""Progress of a sweep: one line on stderr per event of a trial."""

from __future__ import annotations

import sys
from typing import Any

from ray.tune import Callback

from pipeline.storage.redact import mask


class TrialReporter(Callback):
    """Prints starts, evaluations and ends of trials, and how many have ended."""

    def __init__(self, metric: str, trials: int) -> None:
        self.metric, self.trials, self.done = metric, trials, 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the values that the trial tries."""
        params = ", ".join(f"{key} {_short(value)}" for key, value in trial.config.items())
        _print(f"trial {trial.trial_id} starts: {params}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print the score that the trial has reached."""
        if self.metric in result:
            epoch = result.get("epoch", 0.0)
            _print(
                f"trial {trial.trial_id} epoch {epoch:.1f}: {self.metric} {result[self.metric]:.4f}"
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count the trial and print that it ended."""
        self._end(trial, "ended")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count the trial and print where to find its error."""
        self._end(trial, f"failed, see {trial.path}")

    def _end(self, trial: Any, how: str) -> None:
        self.done += 1
        _print(f"trial {trial.trial_id} {how} ({self.done} of {self.trials} done)")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(text: str) -> None:
    print(mask(text), file=sys.stderr, flush=True)
