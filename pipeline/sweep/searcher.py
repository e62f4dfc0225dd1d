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
from pipeline.errors import UserError
from pipeline.sweep.space import SearchSpace
from pipeline.trials.trial_records import Params, TrialRecord, TrialRecords

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
        self._started: dict[str, tuple[str, optuna.Trial]] = {}  # by Tune's id
        self._tried = {_key(record.params) for record in records.all.values()}
        self._queued: list[TrialRecord] = []
        for params, value in former:
            self._learn(params, value)
        for record in records.all.values():
            score = record.best(settings.mode)
            if record.state in _ENDED and score is not None:
                self._learn(record.params, score)
            elif record.state not in _ENDED:
                self._queued.append(record)
        if settings.searcher == "grid":
            space.check_finite()
        self._given = [self._completed(point) for point in self._missing_points()]
        self._new = self._points()
        self._next: Params | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def is_exhausted(self) -> bool:
        """Return whether no trial is left to start."""
        if not self._queued and self._next is None:
            self._next = next(self._new, None)
        return not self._queued and self._next is None

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial, or FINISHED."""
        if self.is_exhausted():
            return Searcher.FINISHED
        if self._queued:
            record = self._queued.pop(0)
        else:
            record = TrialRecord(name=self._records.new_name(), params=self._next or {})
            self._next = None
        self._records.save(record.model_copy(update={"state": "unfinished", "error": ""}))
        self._started[trial_id] = record.name, self._begin(record.params)
        return {"name": record.name, "params": record.params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: a trial is judged when it has ended."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn the best score of a trial."""
        name, trial = self._started.pop(trial_id)
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

    def _missing_points(self) -> Iterator[Mapping[str, Any]]:
        """Yield the given points that no trial has tried."""
        tried = [record.params.items() for record in self._records.all.values()]
        for point in self._settings.points:
            if not any(point.items() <= params for params in tried):
                yield point

    def _completed(self, point: Mapping[str, Any]) -> Params:
        """Return a given point with the fields that it lacks drawn. Raises UserError."""
        for _ in range(MAX_DRAWS):
            params = self._drawn(self._enqueued(point))
            if self._space.is_valid(params) and point.keys() <= params.keys():
                return params
        raise UserError(f"sweep.points: no values of the other fields are valid with {dict(point)}")

    def _points(self) -> Iterator[Params]:
        """Yield the points to try, each once: the given ones first."""
        is_grid, limit = self._settings.searcher == "grid", self._settings.trials
        for params in self._given:
            if (is_grid or len(self._records.all) < limit) and self._is_new(params):
                yield params
        if is_grid:
            yield from filter(self._is_new, self._space.combinations())
            return
        while len(self._records.all) < limit:
            drawn = self._draw()
            if drawn is None:
                return  # all points of a finite space were tried
            yield drawn

    def _draw(self) -> Params | None:
        # A resumed random search draws the points of before again.
        for _ in range(MAX_DRAWS + len(self._tried)):
            params = self._drawn(self._study.ask())
            if self._space.is_valid(params) and self._is_new(params):
                return params
        if self._space.is_finite():
            return next(filter(self._is_new, self._space.combinations()), None)
        return None

    def _is_new(self, params: Params) -> bool:
        key = _key(params)
        if key in self._tried:
            return False
        self._tried.add(key)
        return True

    def _drawn(self, trial: optuna.Trial) -> Params:
        """Draw a point. Its trial of Optuna begins when that of Tune does."""
        params = self._space.suggest(trial)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return params

    def _learn(self, params: Mapping[str, Any], score: float) -> None:
        self._study.tell(self._begin(params), score)

    def _begin(self, params: Mapping[str, Any]) -> optuna.Trial:
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
