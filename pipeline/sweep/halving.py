"""Successive halving: which trials are trained beyond each rung.

A trial pauses at the first evaluation at or after each rung. The best of every ``reduction`` trials
that have reached a rung are promoted, that is trained to the next one, from their checkpoints: once
all trials have reached it or, in a sweep that a limit may end before, as soon as there are enough
(asynchronously), which promotes more of them. All decisions follow from the recorded scores, so
that a resumed sweep decides as a whole one.

Source: Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht and Talwalkar, A System for Massively
Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection

from pipeline.config import Config, SweepConfig
from pipeline.sweep.domain import Domain
from pipeline.trials.trial_records import TrialRecord, TrialRecords


def grace_epochs(config: Config, samples: int) -> int:
    """Return the epochs before ASHA may stop a trial, of ``samples`` images each.

    Unless they are set, these are the longest warm-up of any trial and a share of the training, in
    which seeds differ more than points. There is no decision before the first evaluation.
    """
    first = math.ceil(config.evaluate.every)
    if config.sweep.grace_epochs is not None:
        return max(first, config.sweep.grace_epochs)
    warmup = _highest(config, "train.warmup_steps") * _highest(config, "train.batch_size") / samples
    share = config.sweep.grace_share * config.train.epochs_of(samples)
    return max(first, 1, math.ceil(max(warmup, share)))


def rung_epochs(config: Config, samples: int) -> list[int]:
    """Return the epochs of the rungs: the grace epochs times the powers of the reduction.

    Empty without ASHA, or if a training is not longer than the grace epochs, which is printed.
    """
    if config.sweep.scheduler == "none":
        return []
    grace, epochs = grace_epochs(config, samples), config.train.epochs_of(samples)
    if grace >= epochs:
        print(
            f"no trial is stopped early: the first decision would come after {grace} epochs "
            "(sweep.grace_epochs, or train.warmup_steps and sweep.grace_share; evaluate.every), "
            f"and a training has {epochs:g}",
            file=sys.stderr,
            flush=True,
        )
    rungs = []
    while grace < epochs:
        rungs.append(grace)
        grace *= config.sweep.reduction
    return rungs


class SuccessiveHalving:
    """Pauses trials at ``rungs`` (epochs, rising) and promotes the best of them.

    ``can_resume`` returns whether a trial that was stopped early by an earlier start of the sweep
    still has a checkpoint; without one it counts but is not promoted.
    """

    def __init__(
        self,
        rungs: list[int],
        settings: SweepConfig,
        records: TrialRecords,
        can_resume: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.rungs = rungs
        self._reduction, self._mode, self._records = settings.reduction, settings.mode, records
        # A limit may end the sweep before all trials have reached a rung.
        self.asynchronous = bool(settings.max_hours or settings.max_epochs)
        self._paused: set[str] = set()
        for record in list(records.all.values()) if rungs else []:
            # Killed between its score and its pause.
            if record.state == "unfinished" and self._is_at_rung(record):
                record = record.model_copy(update={"state": "stopped early"})
                records.save(record)
            if record.state == "stopped early" and can_resume(record.name):
                self._paused.add(record.name)

    def pauses(self, name: str, epoch: float, score: float) -> bool:
        """Return whether a trial pauses with the score of a new evaluation.

        At a rung it does, unless it is promoted at once.
        """
        before = self._records.all[name]
        after = before.with_score(epoch, score)
        rung = self._rung(after)
        if rung is None or rung == self._rung(before):
            return False
        if self.asynchronous and name in self._promotable(rung, after):
            return False
        self._paused.add(name)
        return True

    def promote(self, running: Collection[str], no_more: Callable[[], bool]) -> str | None:
        """Return the paused trial to train further, or None.

        ``running`` are the names of the trials that run, and ``no_more`` returns that no new trial
        will come.
        """
        if self.asynchronous:
            for rung in reversed(range(len(self.rungs))):
                if name := self._best_paused(rung):
                    return name
        if (running and self.asynchronous) or not no_more():
            return None
        for rung, epoch in enumerate(self.rungs):
            if any(self._records.all[name].epochs < epoch for name in running):
                return None  # they may be better
            if name := self._best_paused(rung, least=1):
                return name
        return None

    def _best_paused(self, rung: int, least: int = 0) -> str | None:
        for name in self._promotable(rung, least=least):
            if name in self._paused and self._rung(self._records.all[name]) == rung:
                self._paused.remove(name)
                return name
        return None

    def _promotable(
        self, rung: int, changed: TrialRecord | None = None, least: int = 0
    ) -> list[str]:
        """Return the best trials that have reached a rung, the best first."""
        records = dict(self._records.all)
        if changed is not None:
            records[changed.name] = changed
        scores = {
            name: score
            for name, record in records.items()
            if record.state != "failed" and (score := self._score(record, rung)) is not None
        }
        best = sorted(scores, key=scores.__getitem__, reverse=self._mode == "max")
        share = len(best) / self._reduction
        # More trials will reach the rung of an asynchronous search, all have reached the others.
        count = math.floor(share) if self.asynchronous else math.floor(share + 0.5)
        return best[: max(count, least)]

    def _rung(self, record: TrialRecord) -> int | None:
        """Return the index of the highest rung that a trial has reached."""
        reached = [index for index, epoch in enumerate(self.rungs) if record.epochs >= epoch]
        return max(reached, default=None)

    def _score(self, record: TrialRecord, rung: int) -> float | None:
        """Return the best score up to the first evaluation at or after a rung."""
        for number, (epoch, _) in enumerate(record.scores, 1):
            if epoch >= self.rungs[rung]:
                part = record.model_copy(update={"scores": record.scores[:number]})
                return part.best(self._mode)
        return None

    def _is_at_rung(self, record: TrialRecord) -> bool:
        """Return whether the last evaluation of a trial was the first at or after a rung."""
        before = record.model_copy(update={"scores": record.scores[:-1]})
        return bool(record.scores) and self._rung(before) != self._rung(record)


def _highest(config: Config, field: str) -> float:
    """Return the highest value that a field of numbers has in any trial."""
    if field in config.sweep.space:
        return float(max(Domain.parse(field, config.sweep.space[field]).values))
    section, _, name = field.partition(".")
    return float(getattr(getattr(config, section), name))
