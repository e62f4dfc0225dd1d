"""When all trials end."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from pipeline.config import Config
from pipeline.training.stop import StopSignal
from pipeline.trials.trial_records import TrialRecords


class Limits(tune.Stopper):
    """Stops all trials when the sweep is stopped, or when its time or epochs are used up."""

    def __init__(self, config: Config, records: TrialRecords, stop: StopSignal) -> None:
        self._settings, self._records, self._stop = config.sweep, records, stop
        self._began = time.monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Return whether all trials end now."""
        return self._stop.received.is_set() or self.reached() is not None

    def reached(self) -> str | None:
        """Return the limit that the sweep has reached, or None."""
        hours, epochs = self._settings.max_hours, self._settings.max_epochs
        if hours and time.monotonic() - self._began > 3600 * hours:
            return f"sweep.max_hours {hours:g}"
        if epochs and self._records.total_epochs() >= epochs:
            return f"sweep.max_epochs {epochs:g}"
        return None
