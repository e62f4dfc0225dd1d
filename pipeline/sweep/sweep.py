"""A sweep: search the space, confirm the best points, and answer what was found."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.data import Manifest, check_batches
from pipeline.data.loading.repeat_sampling import check_image_classes
from pipeline.distributed.ray_cluster import check_cluster_paths, ray_cluster
from pipeline.errors import OutageError, TrainingFailed, TrainingStopped, UserError
from pipeline.metrics import coco, voc
from pipeline.pretrained import check_start
from pipeline.storage.folder import absolute
from pipeline.storage.redact import mask
from pipeline.sweep.answer import COMPARABLE, Answer, Confirmation, best_recipe, is_confirmed
from pipeline.sweep.documents import Statement, SweepReport, Trial, TrialTable
from pipeline.sweep.halving import SuccessiveHalving, rung_epochs
from pipeline.sweep.page import PAGE_NAME
from pipeline.sweep.paths import absolute_record, absolute_search, as_recorded
from pipeline.sweep.publish import RECIPE, publish
from pipeline.sweep.results import (
    against_default,
    best_figures,
    check_all_succeeded,
    make_table,
)
from pipeline.sweep.space import SearchSpace
from pipeline.sweep.warm_start import former_trials
from pipeline.tracking import create_run, resolve_run_store, resume_run
from pipeline.training.fit import (
    absolute_paths,
    check_data,
    check_weighted_classes,
    close_run,
)
from pipeline.training.run_record import CHANGEABLE, Resume, RunRecord
from pipeline.training.stop import RESUME_HINT, stop_signal
from pipeline.trials.driver import run_trials
from pipeline.trials.ending import (
    child_runs,
    close_child_runs,
    closed_on_interrupt,
    delete_checkpoints,
    interrupt,
)
from pipeline.trials.outcome import outcomes
from pipeline.trials.trial import TrialSettings, has_checkpoint, trial_config
from pipeline.trials.trial_records import Params, TrialRecord, TrialRecords

# What a sweep may be resumed with: more trials, other limits, other resources.
_CHANGEABLE = (
    *(name for name in CHANGEABLE if name != "sweep"),
    "sweep.trials",
    "sweep.concurrency",
    "sweep.max_hours",
    "sweep.max_epochs",
    "sweep.retries",
    "sweep.warm_start",
    "sweep.confirm",
)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found, and where it is written."""

    run: str
    run_id: str
    tracking_uri: str
    metric: str
    trials: list[Trial]  # best first
    statement: Statement
    params: Params  # of the recommended point
    best_yaml: str
    report: str  # path of the page
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the figures of the line of JSON.

        ``best`` is the recommended point, its AP and the interval of this; ``against_default`` the
        gain of that point, or of the best confirmed one, over the recipe; None if none was.
        """
        names = ("run", "run_id", "tracking_uri", "metric", "best_yaml", "report", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "trials": TrialTable(trials=self.trials).model_dump(mode="json")["trials"],
            "statement": self.statement.model_dump(mode="json"),
            "best": best_figures(self.trials, self.statement, self.params),
            "against_default": against_default(self.statement),
        }


class IncompleteSweep(TrainingFailed):
    """Some trainings failed; ``done`` has what the others show."""

    def __init__(self, message: str, done: SweepResult) -> None:
        super().__init__(message)
        self.done = done


def sweep(config: Config, *, run: str, resume: Resume = "auto") -> SweepResult:
    """Search ``sweep.space`` for the best ``sweep.metric``; resumable by name like a training.

    A finished sweep can be extended by more trials, and by more points and seeds to confirm. Raises
    UserError for mistakes in the recipe, IncompleteSweep with the result of the others if a trial
    failed after its retries, and TrainingStopped after SIGTERM.
    """
    from pipeline.sweep.searcher import SpaceSearcher  # slow to import, as Ray Tune is

    began = time.monotonic()
    config, manifests, space = _checked(config)
    former = former_trials(config, space)
    uri = resolve_run_store(config.tracking)
    _check_starts(config, space, manifests["train"].classes, uri)
    with contextlib.closing(RunRecord(config.ray.storage_uri(), run)) as record:
        record.check_storage()
        record.hold(config.ray.lease_seconds)
        records = TrialRecords(record.uri)
        records.load()
        records.all = {name: absolute_record(one) for name, one in records.all.items()}
        info = record.read()
        if info is None and records.all:
            raise UserError(
                f"{mask(record.uri)} contains trials of a sweep without run.json; delete it, or "
                "choose another --run name"
            )
        config = config.replace(record.recorded_freezing(config))
        if line := record.mixed_precision(config):
            print(f"run {run}: {line}", file=sys.stderr, flush=True)
        given = as_recorded(config, info)
        run_id = record.resumable_run_id(resume, given, _CHANGEABLE, extend=True)
        halving = SuccessiveHalving(
            rung_epochs(config, manifests["train"].samples),
            config.sweep,
            records,
            can_resume=lambda name: has_checkpoint(record.uri, name),
        )
        searcher = SpaceSearcher(space, config.sweep, records, halving, former)
        is_over = searcher.is_exhausted() and is_confirmed(config, record.uri, records)
        if info is not None and info.status == "finished" and is_over:
            raise UserError(
                f"sweep {run!r} is finished; raise sweep.trials to extend it, or choose another "
                "--run name"
            )
        if run_id is None:
            # Without a spool: the table of results is read from the store, which is required.
            run_id = create_run(uri, config, run, {"sweep": run}, None, manifests)
        else:
            resume_run(uri, run_id)
        settings = TrialSettings(
            config=config,
            sweep=run,
            storage=record.uri,
            tracking_uri=uri,
            parent_run_id=run_id,
        )
        record.write(run_id, "running", config)
        with close_run(uri, run_id, record, config):
            found = _search(settings, space, searcher, halving, records, record, manifests)
            report = SweepReport(
                sweep=run,
                metric=config.sweep.metric,
                mode=config.sweep.mode,
                space=config.sweep.space,
                trials=found.trials,
                statement=found.answer.statement,
                recipe=best_recipe(config, run, found.answer.statement, found.answer.repeated),
                seconds=round(time.monotonic() - began, 1),
            )
            paths = publish(report, record.uri, uri, run_id)
            _prune(found, report.statement.winner, record.uri)
            result = SweepResult(
                run=run,
                run_id=run_id,
                tracking_uri=uri,
                metric=config.sweep.metric,
                trials=report.trials,
                statement=report.statement,
                params=found.answer.params,
                best_yaml=paths[RECIPE],
                report=paths[PAGE_NAME],
                seconds=round(time.monotonic() - began, 1),
            )
            wanted = found.confirmation.wanted(records)
            try:
                check_all_succeeded([*records.all.values(), *wanted], found.limit, paths[RECIPE])
                _check_all_scored(wanted, found.confirmed)
            except TrainingFailed as error:
                raise IncompleteSweep(str(error), result) from None
    return result


@dataclass(frozen=True)
class _Found:
    trials: list[Trial]
    answer: Answer
    confirmation: Confirmation
    confirmed: Collection[str]
    """Trainings of the confirmation that were scored."""
    limit: str | None
    """That the search has reached."""


def _search(
    settings: TrialSettings,
    space: SearchSpace,
    searcher: Any,
    halving: SuccessiveHalving,
    records: TrialRecords,
    record: RunRecord,
    manifests: dict[str, Manifest],
) -> _Found:
    """Train and score everything that is missing in one Ray cluster, and compare it."""
    from pipeline.sweep.scheduler import RungScheduler
    from pipeline.trials.limits import Limits

    config, uri = settings.config, settings.tracking_uri
    steps = manifests["train"].samples / config.train.batch_size
    confirmation = Confirmation(settings, space, len(manifests["val"].classes))
    known = ((records, record.uri), (confirmation.records, confirmation.storage))
    with (
        closed_on_interrupt(record, uri, settings.parent_run_id, known),
        stop_signal() as stop,
        ray_cluster(config.ray, sweep=True),
    ):
        stop.install()  # Ray has replaced the handler
        record.when_lost(functools.partial(interrupt, stop))
        limits = Limits(config, records, stop)
        if limits.reached() is None and not searcher.is_exhausted():
            scheduler = RungScheduler(halving, config.sweep.metric)
            run_trials(settings, searcher, scheduler, limits, records)
        limit = limits.reached()
        if not stop.received.is_set():
            confirmation.train(records, stop)
        record.check_lease()
        runs = child_runs(uri, settings.parent_run_id)
        for one, storage in known:  # sends what killed trials have left, which outcomes read
            close_child_runs(uri, runs, one, storage, "the sweep was stopped")
        scored = outcomes(settings, _with_scores(records), stop)
        confirmed = confirmation.outcomes(records, stop)
        record.check_lease()
        if stop.received.is_set():
            raise TrainingStopped(f"the sweep was {stop.reason}; {RESUME_HINT}")
    trials = make_table(config, records, runs, scored, steps)
    answer = confirmation.answer(trials, records, scored, confirmed)
    return _Found(trials, answer, confirmation, confirmed.keys(), limit)


def _checked(config: Config) -> tuple[Config, dict[str, Manifest], SearchSpace]:
    """Return the configuration with absolute paths, the manifests and the space.

    Raises UserError for everything that can be wrong before the first trial.
    """
    config = absolute_search(absolute_paths(config))
    if config.sweep.warm_start:
        config = config.replace({"sweep.warm_start": absolute(config.sweep.warm_start)})
    if config.data.val is None:
        raise UserError("data.val is not set; a sweep compares its trials on it")
    if not config.ray.enabled:
        raise UserError("ray.enabled is false; the trials of a sweep run in Ray")
    manifests = check_data(config)
    if not manifests["val"].countable_boxes:
        raise UserError(f"data.val ({config.data.val}) has no object that a sweep could count")
    space = SearchSpace(config)
    if weights := space.domains.get("loss.class_weights"):
        for value in weights.values:
            tried = config.replace({"loss.class_weights": value})
            check_weighted_classes(tried, manifests["train"].classes)
    metric, protocol = config.sweep.metric, config.evaluate.protocol
    names = coco.METRIC_NAMES if protocol == "coco" else voc.METRIC_NAMES
    if metric not in (known := [f"val/{name}" for name in names]):
        raise UserError(
            f"sweep.metric {metric!r} is not logged with evaluate.protocol {protocol}; choose "
            f"from: {', '.join(known)}"
        )
    if config.sweep.confirm.points and metric not in COMPARABLE:
        raise UserError(
            f"sweep.metric {metric!r} has no interval over images, by which points are confirmed; "
            f"choose from: {', '.join(COMPARABLE)}, or set sweep.confirm.points to 0"
        )
    for number, point in enumerate(config.sweep.points):
        space.check_point(point, f"sweep.points[{number}]")
    if "data.repeat_threshold" in space.domains:
        check_image_classes(str(config.data.train), manifests["train"])
    check_batches(config, config.ray.max_workers)
    check_cluster_paths(config)
    return config, manifests, space


def _check_starts(config: Config, space: SearchSpace, classes: list[str], uri: str) -> None:
    """Raise UserError or OutageError if weights that the recipe or a trial starts from do not fit
    or are not available."""
    checked = set()
    for params in ({}, *space.starts()):
        tried = trial_config(config, params)
        if (model := tried.model.model_dump_json()) in checked:
            continue
        checked.add(model)
        try:
            check_start(tried, classes, uri)
        except (UserError, OutageError) as error:
            if not params:
                raise
            values = ", ".join(f"{field} = {value!r}" for field, value in params.items())
            raise type(error)(f"sweep.space: {values}: {error}") from None


def _with_scores(records: TrialRecords) -> list[str]:
    return [name for name, record in records.all.items() if record.scores]


def _prune(found: _Found, winner: str, storage: str) -> None:
    """Delete the checkpoints of all but the winner, and of trainings that may be resumed."""
    _prune_trials(found.trials, winner, storage, keep_paused=found.limit is not None)
    arm = found.answer.statement.arm(winner)
    kept = arm.trials if arm is not None else []
    confirmation = found.confirmation
    confirmed = [
        name
        for name, record in confirmation.records.all.items()
        if record.state == "finished" and name in found.confirmed and name not in kept
    ]
    delete_checkpoints(confirmation.storage, confirmed)


def _prune_trials(trials: list[Trial], winner: str, storage: str, *, keep_paused: bool) -> None:
    """Delete those of scored trials; ``keep_paused`` those that a higher limit would promote."""
    ended = ("finished",) if keep_paused else ("finished", "stopped early")
    delete_checkpoints(
        storage,
        [
            row.name
            for row in trials
            if row.status in ended and row.low is not None and row.name != winner
        ],
    )


def _check_all_scored(trainings: Sequence[TrialRecord], scored: Collection[str]) -> None:
    """Raise TrainingFailed if a training of the confirmation has finished without a score."""
    lost = [one.name for one in trainings if one.state == "finished" and one.name not in scored]
    if lost:
        raise TrainingFailed(
            f"{', '.join(lost)} could not be scored, so the answer is incomplete; run the same "
            "command with the same --run to try again"
        )
