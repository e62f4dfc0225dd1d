"""A comparison: train every arm on every seed, score the results, say what they distinguish."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.comparison.arms import Arm
from pipeline.comparison.cells import CHANGEABLE, Cell, Split, make_cells
from pipeline.comparison.documents import ArmResult, Comparison, Pair
from pipeline.comparison.figures import Scored, make_table
from pipeline.comparison.folds import fold_splits
from pipeline.comparison.plan import (
    Plan,
    absolute_arm,
    check_folder,
    check_numbers,
    comparison_config,
    with_freezing,
)
from pipeline.comparison.results import as_text, record_result
from pipeline.comparison.statement import sentences
from pipeline.config import Config
from pipeline.data import Manifest, check_batches, load_manifest
from pipeline.data.loading.repeat_sampling import check_image_classes
from pipeline.distributed.ray_cluster import check_cluster_paths, ray_cluster
from pipeline.errors import TrainingFailed, TrainingStopped, UserError
from pipeline.pretrained import check_start
from pipeline.progress import counted
from pipeline.tracking import create_run, resolve_run_store, resume_run
from pipeline.training.fit import check_data, check_weighted_classes, close_run
from pipeline.training.run_record import Resume, RunRecord
from pipeline.training.stop import RESUME_HINT, stop_signal
from pipeline.trials.ending import child_runs, close_child_runs, closed_on_interrupt, interrupt
from pipeline.trials.outcome import load_matches, outcomes
from pipeline.trials.trial import TrialSettings, trial_config
from pipeline.trials.trial_records import TrialRecords


@dataclass(frozen=True)
class Finished:
    """What `compare` returns: the figures, the same as text, and where they are stored."""

    run: str
    run_id: str
    tracking_uri: str
    table: list[ArmResult]
    pairs: list[Pair]
    sentences: list[str]
    text: str
    report: str  # path of the page
    seconds: float


class IncompleteComparison(TrainingFailed):
    """Some trainings failed; ``done`` has the figures of the others."""

    def __init__(self, message: str, done: Finished) -> None:
        super().__init__(message)
        self.done = done


def compare(
    config: Config,
    *,
    run: str,
    arms: Sequence[Arm],
    seeds: int,
    folds: int = 0,
    resume: Resume = "auto",
) -> Finished:
    """Compare arms, which `build_arms` returns, on ``seeds`` seeds; resumable by name.

    The seeds count from ``train.seed``. With ``folds``, ``data.train`` is split in as many parts,
    and each is scored by trainings on the others. Every training runs to the end of its schedule,
    and its last weights are scored: no epoch is selected.

    Raises UserError for mistakes, IncompleteComparison with the result of the others if trainings
    failed after their retries, and TrainingStopped after SIGTERM.
    """
    from pipeline.trials.given import train_given  # slow to import, as Ray Tune is

    began = time.monotonic()
    check_numbers(seeds, folds)
    config = comparison_config(config, arms, folds)
    arms = [absolute_arm(arm) for arm in arms]
    manifests = check_data(config)
    if not (folds or manifests["val"].countable_boxes):
        raise UserError(f"data.val ({config.data.val}) has no object that a comparison could count")
    for arm in arms:
        own = trial_config(config, arm.params)
        check_batches(own, config.ray.max_workers)
        check_weighted_classes(own, manifests["train"].classes)
        if own.data.repeat_threshold and not folds:
            check_image_classes(str(config.data.train), manifests["train"])
    check_cluster_paths(config)
    uri = resolve_run_store(config.tracking)
    for start in _distinct_models(config, arms):
        check_start(start, manifests["train"].classes, uri)
    with contextlib.closing(RunRecord(config.ray.storage_uri(), run)) as record:
        record.check_storage()
        record.hold(config.ray.lease_seconds)
        config = config.replace(record.recorded_freezing(config))
        if line := record.mixed_precision(config):
            print(f"run {run}: {line}", file=sys.stderr, flush=True)
        if folds:
            arms = [with_freezing(config, arm, manifests["train"].samples) for arm in arms]
        run_id = record.resumable_run_id(resume, config, CHANGEABLE, extend=True)
        records = TrialRecords(record.uri)
        records.load()
        check_folder(record, records, resumed=run_id is not None)
        plan = Plan(
            arms=list(arms),
            seeds=[config.train.seed + number for number in range(seeds)],
            folds=folds,
        )
        if folds:
            splits = fold_splits(config, manifests["train"], folds, record.uri)
            if any(trial_config(config, arm.params).data.repeat_threshold for arm in arms):
                for uri_of_fold in (str((split.params or {})["data.train"]) for split in splits):
                    check_image_classes(uri_of_fold, load_manifest(uri_of_fold))
        else:
            splits = [Split((manifests["train"].content_hash, manifests["val"].content_hash))]
        cells = make_cells(config, arms, plan.seeds, splits, records.all)
        if run_id is None:
            # Without a spool: the runs of the trials are read from the store, which is required.
            run_id = create_run(uri, config, run, {"comparison": run}, None, manifests)
        else:
            resume_run(uri, run_id)
        plan.write(record.uri)
        record.write(run_id, "running", config)
        _announce(plan, cells, records)
        settings = TrialSettings(
            config=config, sweep=run, storage=record.uri, tracking_uri=uri, parent_run_id=run_id
        )
        with close_run(uri, run_id, record, config):
            with (
                closed_on_interrupt(record, uri, run_id, [(records, record.uri)]),
                stop_signal() as stop,
                ray_cluster(config.ray, sweep=True),
            ):
                stop.install()  # Ray has replaced the handler
                record.when_lost(functools.partial(interrupt, stop))
                names = [cell.name for cell in cells]
                train_given(settings, {cell.name: cell.params for cell in cells}, records, stop)
                record.check_lease()
                runs = child_runs(uri, run_id)
                close_child_runs(uri, runs, records, record.uri, "the comparison was stopped")
                finished = [name for name in names if _state(records, name) == "finished"]
                found = {} if stop.received.is_set() else outcomes(settings, finished, stop)
                if stop.received.is_set():
                    raise TrainingStopped(f"the comparison was {stop.reason}; {RESUME_HINT}")
            scored = {
                name: Scored(
                    load_matches(record.uri, name), outcome.seconds_per_step, outcome.health
                )
                for name, outcome in found.items()
            }
            result = _result(run, config, plan, cells, scored, manifests, began)
            done = Finished(
                run=run,
                run_id=run_id,
                tracking_uri=uri,
                table=result.table,
                pairs=result.pairs,
                sentences=result.sentences,
                text=as_text(result),
                report=record_result(result, record, uri, run_id),
                seconds=result.seconds,
            )
            _check_all_scored(done, records)
    return done


def _result(
    run: str,
    config: Config,
    plan: Plan,
    cells: Sequence[Cell],
    scored: Mapping[str, Scored],
    manifests: Mapping[str, Manifest],
    began: float,
) -> Comparison:
    protocol = config.evaluate.protocol
    manifest = manifests["train" if plan.folds else "val"]
    table, pairs, spread = make_table(plan.arms, cells, scored, manifest.classes, protocol)
    metric = config.evaluate.deciding_metric.removeprefix("val/")
    return Comparison(
        run=run,
        metric=metric,
        protocol=protocol,
        data=manifest.name,
        images=manifest.samples,
        epochs=config.train.epochs_of(manifests["train"].samples),
        seeds=plan.seeds,
        folds=plan.folds,
        table=table,
        pairs=pairs,
        spread=spread,
        sentences=sentences(metric, manifest.samples, table, pairs, spread, plan.folds),
        seconds=round(time.monotonic() - began, 1),
    )


def _check_all_scored(done: Finished, records: TrialRecords) -> None:
    """Raise IncompleteComparison if trainings failed or could not be scored."""
    failed = [name for arm in done.table for name in arm.failed]
    if failed:
        total = sum(len(arm.trials) for arm in done.table)
        first = records.all.get(failed[0])
        error = (first.error if first else "") or "it could not be scored"
        raise IncompleteComparison(
            f"{len(failed)} of {counted(total, 'training')} failed, the first: {failed[0]}: "
            f"{error}; the table shows the others; run the same command to retry them",
            done,
        )


def _distinct_models(config: Config, arms: Sequence[Arm]) -> list[Config]:
    """Return a configuration for each of the models that the arms train."""
    tried = [trial_config(config, arm.params) for arm in arms]
    return list({one.model.model_dump_json(): one for one in tried}.values())


def _state(records: TrialRecords, name: str) -> str | None:
    record = records.all.get(name)
    return record.state if record is not None else None


def _announce(plan: Plan, cells: Sequence[Cell], records: TrialRecords) -> None:
    finished = sum(_state(records, cell.name) == "finished" for cell in cells)
    parts = f" x {plan.folds} folds" if plan.folds else ""
    print(
        f"{counted(len(plan.arms), 'arm')} x {counted(len(plan.seeds), 'seed')}{parts}: "
        f"{counted(len(cells), 'training')}, {finished} of them finished; arms: "
        f"{', '.join(arm.name for arm in plan.arms)}",
        file=sys.stderr,
        flush=True,
    )
