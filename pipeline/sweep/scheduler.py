"""The scheduler of Ray Tune that pauses trials at the rungs of successive halving.

A paused trial is stopped, which frees its resources; `SpaceSearcher` suggests it again once it is
promoted. Ray's own ASHA never resumes a trial, and therefore lets the first ones continue before
there are others to compare them with.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pipeline.sweep.halving import SuccessiveHalving


class RungScheduler(FIFOScheduler):
    """Stops trials at the rungs of ``halving``, by the scores of ``metric``."""

    def __init__(self, halving: SuccessiveHalving, metric: str) -> None:
        super().__init__()
        self._halving, self._metric_name = halving, metric

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return STOP if the trial pauses with this result, else CONTINUE."""
        if self._metric_name in result:
            epoch, score = float(result["epoch"]), float(result[self._metric_name])
            if self._halving.pauses(trial.config["name"], epoch, score):
                return TrialScheduler.STOP
        return TrialScheduler.CONTINUE
