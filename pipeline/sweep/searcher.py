"""Which trial runs next: unfinished ones, given points, those of random, grid or TPE, promotions.

Promotions come last, when all points were tried. In a sweep that a limit may end before, they come
before new points.
"""

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
from pipeline.sweep.halving import SuccessiveHalving
from pipeline.sweep.space import SearchSpace
from pipeline.trials.trial_records import Params, TrialRecord, TrialRecords

MAX_DRAWS = 200  # for a point that is valid and was not tried before
_ENDED = ("finished", "stopped early")


class SpaceSearcher(Searcher):
    """Suggests ``{"name": NAME, "params": {...}}``; keeps the record of each trial.

    Of the trials in ``records``, those that ended are learned from, and all others are suggested
    first, under their names. ``former`` are points and scores of another sweep, to learn from.
    Trials that ``halving`` promotes are suggested again.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: SweepConfig,
        records: TrialRecords,
        halving: SuccessiveHalving,
        former: Sequence[tuple[Params, float]] = (),
    ) -> None:
        super().__init__(metric=settings.metric, mode=settings.mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._settings, self._records = space, settings, records
        self._halving, self._former = halving, former
        if settings.searcher == "tpe":
            with warnings.catch_warnings():  # of options that may still change
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(
                    seed=settings.seed, constant_liar=True
                )
        else:
            self._sampler = optuna.samplers.RandomSampler(seed=settings.seed)
        self._started: dict[str, tuple[str, optuna.Trial]] = {}  # by Tune's id
        self._tried = {_key(record.params) for record in records.all.values()}
        self._queued = [one for one in records.all.values() if one.state not in _ENDED]
        self._study = self._learned()
        if settings.searcher == "grid":
            space.check_finite()
        self._given = [self._completed(point) for point in self._missing_points()]
        self._new = self._points()
        self._next: Params | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave nothing in the pickle that Tune writes, which is not read again."""
        return object, ()

    def is_exhausted(self) -> bool:
        """Return whether no trial is left to start, nor runs."""
        if self._queued or self._started or self._point() is not None:
            return False
        promoted = self._promoted()
        if promoted is not None:
            self._queued.append(promoted)
        return promoted is None

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial, FINISHED, or None until a trial that runs has ended."""
        if self.is_exhausted():
            return Searcher.FINISHED
        record = self._queued.pop(0) if self._queued else self._promoted()
        if record is None:
            params = self._point()
            if params is None:
                return None
            record, self._next = TrialRecord(name=self._records.new_name(), params=params), None
        self._records.save(record.model_copy(update={"state": "unfinished", "error": ""}))
        if record.state in _ENDED:  # its next score replaces the one that was learned
            self._study = self._learned()
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

    def _promoted(self) -> TrialRecord | None:
        running = [name for name, _ in self._started.values()]
        name = self._halving.promote(running, lambda: self._point() is None)
        return self._records.all[name] if name else None

    def _point(self) -> Params | None:
        """Return the next point to try, the same until it is taken; None if there is no more."""
        if self._next is None:
            self._next = next(self._new, None)
        return self._next

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

    def _learned(self) -> optuna.Study:
        """Return a study with the scores of the trials that ended, and with those that run."""
        self._study = optuna.create_study(
            sampler=self._sampler,
            direction="maximize" if self._settings.mode == "max" else "minimize",
        )
        for params, value in self._former:
            self._study.tell(self._begin(params), value)
        for record in self._records.all.values():
            score = record.best(self._settings.mode)
            if score is not None and record.state in _ENDED:
                self._study.tell(self._begin(record.params), score)
        for trial_id, (name, _) in self._started.items():
            self._started[trial_id] = name, self._begin(self._records.all[name].params)
        return self._study

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
