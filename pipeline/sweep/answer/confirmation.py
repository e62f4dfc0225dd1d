"""Train the best points again, score them, and compare: what a sweep answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.errors import TrainingFailed
from pipeline.progress import counted
from pipeline.storage.folder import join
from pipeline.storage.redact import mask
from pipeline.sweep.answer.arms import (
    FOLDER,
    chosen_arms,
    compare_arms,
    default_values,
    further_seeds,
    is_complete,
    training_name,
    trainings,
)
from pipeline.sweep.answer.recipe import Reproduced
from pipeline.sweep.answer.statement import compared, one_seed
from pipeline.sweep.documents import DEFAULT, Statement, Trial
from pipeline.sweep.results import make_table
from pipeline.sweep.space import SearchSpace
from pipeline.training.stop import StopSignal
from pipeline.trials.outcome import TrialOutcome, load_matches, outcomes
from pipeline.trials.trial import TrialSettings
from pipeline.trials.trial_records import Params, TrialRecord, TrialRecords


@dataclass(frozen=True)
class Answer:
    """The statement of a sweep, the point it recommends, and the training that has this point."""

    statement: Statement
    params: Params
    repeated: Reproduced


def is_confirmed(config: Config, storage: str, searched: TrialRecords) -> bool:
    """Return whether nothing is left to train, given the trials of a search in its folder."""
    confirmed = TrialRecords(join(storage, FOLDER))
    confirmed.load()
    arms = chosen_arms(config, make_table(config, searched), confirmed)
    return is_complete(config, arms, confirmed)


class Confirmation:
    """The trainings after a search, in the folder ``confirm`` of the sweep."""

    def __init__(self, settings: TrialSettings, space: SearchSpace, classes: int) -> None:
        no_limits = {"sweep.max_hours": 0.0, "sweep.max_epochs": 0.0}  # they end the search
        self._settings = settings.model_copy(
            update={
                "config": settings.config.replace(no_limits),
                "storage": join(settings.storage, FOLDER),
            }
        )
        self._config, self._space, self._classes = settings.config, space, classes
        self.records = TrialRecords(self._settings.storage)
        self.records.load()

    @property
    def storage(self) -> str:
        """Return the folder or URI of the trainings."""
        return self._settings.storage

    def train(self, searched: TrialRecords, stop: StopSignal) -> None:
        """Train what is missing, in a process that is connected to Ray."""
        from pipeline.trials.given import train_given  # slow to import, as Ray Tune is

        arms = self._arms(searched)
        wanted = trainings(self._config, arms)
        if not is_complete(self._config, arms, self.records):
            *points, last = [name for name in arms if name != DEFAULT]
            named = f"{', '.join(points)} and {last}" if points else last
            seeds = counted(len(further_seeds(self._config)), "further seed")
            _print(
                f"confirming {named} against the default on {seeds}: "
                f"{counted(len(wanted), 'training')} in all"
            )
            train_given(self._settings, wanted, self.records, stop)

    def outcomes(self, searched: TrialRecords, stop: StopSignal) -> dict[str, TrialOutcome]:
        """Return the outcomes of the trainings that have finished, also connected to Ray."""
        wanted = trainings(self._config, self._arms(searched))
        finished = [name for name in wanted if self._has_finished(name)]
        return outcomes(self._settings, finished, stop) if finished else {}

    def answer(
        self,
        trials: Sequence[Trial],
        searched: TrialRecords,
        found: Mapping[str, TrialOutcome],
        confirmed: Mapping[str, TrialOutcome],
    ) -> Answer:
        """Return what the table of the search and the trainings after it show.

        ``found`` and ``confirmed`` are the outcomes of both. Raises TrainingFailed if no trial has
        a score.
        """
        metric, mode = self._config.sweep.metric, self._config.sweep.mode
        best = trials[0] if trials else None
        if best is None or best.best is None or best.status == "failed":
            why = next((f": {trial.error}" for trial in trials if trial.error), "")
            runs = mask(self._settings.tracking_uri)
            raise TrainingFailed(f"no trial reported {metric}{why}; their runs are in {runs}")
        arms = self._arms(searched)
        left_out = {name: why for name in arms if (why := self._why_left_out(name, confirmed))}
        complete = [name for name in arms if name not in left_out]
        failures = [f"{name} is not compared: {why}." for name, why in left_out.items()]
        if not complete:
            statement = one_seed(metric, mode, best, len(trials), self._why_unconfirmed(failures))
            return Answer(statement, best.params, _of_search(best, found, metric))
        matches = {
            name: [load_matches(self.storage, one) for one in self._names(name)]
            for name in complete
        }
        shown = {**arms, DEFAULT: default_values(self._config, self._space)}
        ranked, pairs, spread = compare_arms(self._config, self._classes, shown, confirmed, matches)
        images = next(iter(matches.values()))[0].images
        statement = compared(metric, mode, images, ranked, pairs, spread, failures)
        winner, seed = statement.winner, further_seeds(self._config)[0]
        name = training_name(winner, seed)
        params = {**arms[winner], "train.seed": seed}
        return Answer(statement, shown[winner], _reproduced(name, params, confirmed[name], metric))

    def wanted(self, searched: TrialRecords) -> list[TrialRecord]:
        """Return the records of the trainings that the present settings ask for."""
        names = trainings(self._config, self._arms(searched))
        return [self.records.all[name] for name in names if name in self.records.all]

    def _arms(self, searched: TrialRecords) -> dict[str, Params]:
        return chosen_arms(self._config, make_table(self._config, searched), self.records)

    def _names(self, arm: str) -> list[str]:
        return [training_name(arm, seed) for seed in further_seeds(self._config)]

    def _has_finished(self, name: str) -> bool:
        return name in self.records.all and self.records.all[name].state == "finished"

    def _why_left_out(self, arm: str, confirmed: Mapping[str, TrialOutcome]) -> str:
        for name in self._names(arm):
            record = self.records.all.get(name)
            if record is None or record.state != "finished":
                error = record.error if record is not None else ""
                return f"{name} did not finish{f' ({error})' if error else ''}"
            if name not in confirmed:
                return f"{name} has no score"
        return ""

    def _why_unconfirmed(self, failures: list[str]) -> str:
        if failures:
            return " ".join(failures)
        if not self._config.sweep.confirm.points:
            return (
                "Set sweep.confirm.points to compare the best points with the recipe as it is, on "
                "further seeds; the same command with the same --run then trains only these."
            )
        return "None was confirmed, since no trial other than the recipe itself has finished."


def _of_search(best: Trial, found: Mapping[str, TrialOutcome], metric: str) -> Reproduced:
    outcome = found.get(best.name) if best.status == "finished" else None
    if outcome is None:
        return Reproduced(best.name, best.params, None)
    return _reproduced(best.name, best.params, outcome, metric)


def _reproduced(name: str, params: Params, outcome: TrialOutcome, metric: str) -> Reproduced:
    score = outcome.metrics.get(metric.removeprefix("val/"))
    return Reproduced(name, params, score, outcome.postprocessing)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
