"""Which trials are stopped early."""

from __future__ import annotations

import math
import sys
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from pipeline.config import Config
from pipeline.trials.trial_records import TrialRecords


def grace_epochs(config: Config, steps_per_epoch: float) -> int:
    """Return the epochs before ASHA may stop a trial.

    Unless they are set, these are the warm-up and a share of the training, in which seeds differ
    more than points.
    """
    if config.sweep.grace_epochs is not None:
        return config.sweep.grace_epochs
    warmup = config.train.warmup_steps / steps_per_epoch
    return max(1, math.ceil(max(warmup, config.sweep.grace_share * config.train.epochs)))


def build_scheduler(config: Config, steps_per_epoch: float, records: TrialRecords) -> Any:
    """Return the scheduler of a sweep, given the scores in the records."""
    grace = grace_epochs(config, steps_per_epoch)
    if config.sweep.scheduler == "none":
        return FIFOScheduler()
    if grace >= config.train.epochs:
        print(
            f"no trial is stopped early: the first decision would come after {grace} epochs "
            "(sweep.grace_epochs, or train.warmup_steps and sweep.grace_share), and a training has "
            f"{config.train.epochs:g}",
            file=sys.stderr,
            flush=True,
        )
        return FIFOScheduler()
    return _ResumableASHA(records, config, grace)


class _ResumableASHA(ASHAScheduler):
    """ASHA over epochs that has seen the scores which a resumed sweep has recorded."""

    def __init__(self, records: TrialRecords, config: Config, grace: int) -> None:
        settings = config.sweep
        super().__init__(
            time_attr="epoch",
            metric=settings.metric,
            mode=settings.mode,
            # No decision at the last epoch: a trial that reaches it is complete.
            max_t=max(grace, math.ceil(config.train.epochs) - 1),
            grace_period=grace,
            reduction_factor=settings.reduction,
            stop_last_trials=False,
        )
        self._metric_name, self._records = settings.metric, records
        for record in records.all.values():
            if record.state != "unfinished":
                self._replay(record.name, _Ended(record.name))

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial, with the scores it reported before the sweep was resumed."""
        super().on_trial_add(tune_controller, trial)
        self._replay(trial.config["name"], trial, add=False)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept the metric and mode that this scheduler has already."""
        return True

    def _replay(self, name: str, trial: Any, *, add: bool = True) -> None:
        unused: Any = None  # the controller
        if add:
            super().on_trial_add(unused, trial)
        for epoch, score in self._records.all[name].scores:
            super().on_trial_result(unused, trial, {"epoch": epoch, self._metric_name: score})


class _Ended:
    """What ASHA needs of a trial that has ended."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
