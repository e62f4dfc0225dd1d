"""Which point is tried next: unfinished trials, given points, then random, grid or TPE."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher

from pipeline.config import SweepConfig
from pipeline.sweep.space import Params, SearchSpace
from pipeline.sweep.trial_records import TrialRecord, TrialRecords

MAX_DRAWS = 200  # for a point that is valid and was not tried before
_ENDED = ("finished", "stopped early")


class SpaceSearcher(Searcher):
    """Suggests ``{"name": NAME, "params": {...}}``; keeps the record of each trial.

    Of the trials in ``records``, those that ended are learned from, and all others are suggested
    first, under their names. ``former`` are points and scores of another sweep, to learn from.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: SweepConfig,
        records: TrialRecords,
        former: Sequence[tuple[Params, float]] = (),
    ) -> None:
        super().__init__(metric=settings.metric, mode=settings.mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._settings, self._records = space, settings, records
        sampler: optuna.samplers.BaseSampler
        if settings.searcher == "tpe":
            with warnings.catch_warnings():  # of options that may still change
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = optuna.samplers.TPESampler(seed=settings.seed, constant_liar=True)
        else:
            sampler = optuna.samplers.RandomSampler(seed=settings.seed)
        self._study = optuna.create_study(
            sampler=sampler, direction="maximize" if settings.mode == "max" else "minimize"
        )
        self._asked: dict[str, tuple[str, optuna.Trial]] = {}  # by Tune's id
        self._tried = {_key(record.params) for record in records.all.values()}
        self._waiting: list[TrialRecord] = []
        for params, value in former:
            self._learn(params, value)
        for record in records.all.values():
            score = record.best(settings.mode)
            if record.state in _ENDED and score is not None:
                self._learn(record.params, score)
            elif record.state not in _ENDED:
                self._waiting.append(record)
        self._new = self._points()
        self._next: Params | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def is_exhausted(self) -> bool:
        """Return whether no trial is left to start."""
        if not self._waiting and self._next is None:
            self._next = next(self._new, None)
        return not self._waiting and self._next is None

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial, or FINISHED."""
        if self.is_exhausted():
            return Searcher.FINISHED
        if self._waiting:
            record = self._waiting.pop(0)
        else:
            record = TrialRecord(name=self._records.next_name(), params=self._next or {})
            self._next = None
        self._records.save(record.model_copy(update={"state": "unfinished", "error": ""}))
        self._asked[trial_id] = record.name, self._ask(record.params)
        return {"name": record.name, "params": record.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: a trial is judged when it has ended."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn the best score of a trial."""
        name, trial = self._asked.pop(trial_id)
        score = self._records.all[name].best(self._settings.mode)
        if score is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, score)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file for Tune: all state is in the records."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: all state is in the records."""

    def _points(self) -> Iterator[Params]:
        """Yield the points to try, each once: the given ones first."""
        limit = self._settings.trials
        for point in self._settings.points:
            if len(self._records.all) >= limit and self._settings.searcher != "grid":
                return
            params = self._drawn(self._enqueued(point))
            if self._is_new(params):
                yield params
        if self._settings.searcher == "grid":
            yield from filter(self._is_new, self._space.combinations())
            return
        while len(self._records.all) < limit:
            drawn = self._draw()
            if drawn is None:
                return  # all points of a finite space were tried
            yield drawn

    def _draw(self) -> Params | None:
        for _ in range(MAX_DRAWS):
            params = self._drawn(self._study.ask())
            if self._space.is_valid(params) and self._is_new(params):
                return params
        return None

    def _drawn(self, trial: optuna.Trial) -> Params:
        """Draw a point. It is asked for again, with its values, when its trial starts."""
        params = self._space.suggest(trial)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return params

    def _is_new(self, params: Params) -> bool:
        key = _key(params)
        if key in self._tried:
            return False
        self._tried.add(key)
        return True

    def _learn(self, params: Mapping[str, Any], score: float) -> None:
        self._study.tell(self._ask(params), score)

    def _ask(self, params: Mapping[str, Any]) -> optuna.Trial:
        trial = self._enqueued(params)
        self._space.suggest(trial)
        return trial

    def _enqueued(self, params: Mapping[str, Any]) -> optuna.Trial:
        domains = self._space.domains
        self._study.enqueue_trial(
            {field: domains[field].optuna_value(value) for field, value in params.items()}
        )
        return self._study.ask()


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
