"""A sweep: search the space, record the trials in MLflow, write the recipe of the best."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data import check_batches
from pipeline.distributed.ray_cluster import check_cluster_paths, ray_cluster
from pipeline.errors import TrainingFailed, TrainingStopped, UserError
from pipeline.metrics.coco import METRIC_NAMES
from pipeline.storage.durable import write_durably
from pipeline.storage.folder import Storage, absolute, split
from pipeline.storage.redact import mask, mask_tree
from pipeline.sweep.domain import Domain
from pipeline.sweep.results import Trial, TrialTable, best_recipe, check_all_succeeded, make_table
from pipeline.sweep.space import SearchSpace
from pipeline.tracking import (
    connect,
    create_run,
    resolve_run_store,
    resume_run,
)
from pipeline.training.fit import absolute_paths, check_data, close_run
from pipeline.training.run_record import CHANGEABLE, Resume, RunRecord
from pipeline.training.stop import RESUME_HINT, stop_signal
from pipeline.trials.driver import run_trials
from pipeline.trials.ending import child_runs, close_child_runs, delete_checkpoints, interrupt
from pipeline.trials.trial import TrialSettings
from pipeline.trials.trial_records import Params, TrialRecords

# What a sweep may be resumed with: more trials, other limits, other resources.
_CHANGEABLE = (
    *(name for name in CHANGEABLE if name != "sweep"),
    "sweep.trials",
    "sweep.concurrency",
    "sweep.max_hours",
    "sweep.max_epochs",
    "sweep.retries",
    "sweep.warm_start",
)


@dataclass(frozen=True)
class SweepResult:
    """All trials, best first, and the recipe of the best one."""

    run: str
    run_id: str
    tracking_uri: str
    metric: str
    trials: list[Trial]
    best_yaml: str
    seconds: float


def sweep(config: Config, *, run: str, resume: Resume = "auto") -> SweepResult:
    """Search ``sweep.space`` for the best ``sweep.metric``; resumable by name like a training.

    A finished sweep can be extended by more trials. Raises UserError for mistakes in the recipe,
    TrainingFailed if a trial failed after its retries (all others are recorded and its best recipe
    is written), and TrainingStopped after SIGTERM.
    """
    from pipeline.sweep.scheduler import build_scheduler  # slow to import, as Ray Tune is
    from pipeline.sweep.searcher import SpaceSearcher
    from pipeline.trials.limits import Limits

    began = time.monotonic()
    config = absolute_paths(config)
    if config.sweep.warm_start:
        config = config.replace({"sweep.warm_start": absolute(config.sweep.warm_start)})
    if config.data.val is None:
        raise UserError("data.val is not set; a sweep compares its trials on it")
    manifests = check_data(config)
    space = SearchSpace(config)
    known = [f"val/{name}" for name in METRIC_NAMES]
    if config.sweep.metric not in known:
        raise UserError(
            f"sweep.metric {config.sweep.metric!r} is not logged; choose from: {', '.join(known)}"
        )
    for number, point in enumerate(config.sweep.points):
        space.check_point(point, f"sweep.points[{number}]")
    check_batches(config, config.ray.max_workers)
    check_cluster_paths(config)
    former = _former_trials(config, space)
    uri = resolve_run_store(config.tracking)
    with contextlib.closing(RunRecord(config.ray.storage_uri(), run)) as record:
        record.check_storage()
        record.hold(config.ray.lease_seconds)
        records = TrialRecords(record.uri)
        records.load()
        info = record.read()
        if info is None and records.all:
            raise UserError(
                f"{mask(record.uri)} contains trials of a sweep without run.json; delete it, or "
                "choose another --run name"
            )
        run_id = record.resumable_run_id(resume, config, _CHANGEABLE, extend=True)
        searcher = SpaceSearcher(space, config.sweep, records, former)
        if info is not None and info.status == "finished" and searcher.is_exhausted():
            raise UserError(
                f"sweep {run!r} is finished; raise sweep.trials to extend it, or choose another "
                "--run name"
            )
        if run_id is None:
            # Without a spool: the table of results is read from the store, which is required.
            run_id = create_run(uri, config, run, {"sweep": run}, None, manifests)
        else:
            resume_run(uri, run_id)
        record.write(run_id, "running", config)
        steps = manifests["train"].samples / config.train.batch_size
        with close_run(uri, run_id, record, config):
            with stop_signal() as stop, ray_cluster(config.ray, sweep=True):
                stop.install()  # Ray has replaced the handler
                record.when_lost(functools.partial(interrupt, stop))
                limits = Limits(config, records, stop)
                settings = TrialSettings(
                    config=config,
                    sweep=run,
                    storage=record.uri,
                    tracking_uri=uri,
                    parent_run_id=run_id,
                )
                if not searcher.is_exhausted():
                    scheduler = build_scheduler(config, steps, records)
                    run_trials(settings, searcher, scheduler, limits, records)
                record.check_lease()
                runs = child_runs(uri, run_id)
                close_child_runs(uri, runs, records, record.uri, "the sweep was stopped")
                if stop.received.is_set():
                    raise TrainingStopped(f"the sweep was {stop.reason}; {RESUME_HINT}")
            trials = make_table(config, records, runs)
            best_yaml = _record_results(config, trials, record, uri, run_id)
            check_all_succeeded(trials, limits.reached(), best_yaml)
    return SweepResult(
        run=run,
        run_id=run_id,
        tracking_uri=uri,
        metric=config.sweep.metric,
        trials=trials,
        best_yaml=best_yaml,
        seconds=round(time.monotonic() - began, 1),
    )


def _former_trials(config: Config, space: SearchSpace) -> list[tuple[Params, float]]:
    """Return points and scores of ``sweep.warm_start`` that are points of this space too.

    A field that it did not search has the value of its configuration.
    """
    uri = config.sweep.warm_start
    if uri is None:
        return []
    info = RunRecord(*split(uri)).read()
    records = TrialRecords(uri)
    records.load()
    if info is None or not records.all:
        raise UserError(f"sweep.warm_start {mask(uri)}: not the folder of a sweep")
    ranked = {name: info.config["sweep"].get(name) for name in ("metric", "mode")}
    if ranked != {"metric": config.sweep.metric, "mode": config.sweep.mode}:
        raise UserError(
            f"sweep.warm_start {mask(uri)}: its trials are ranked by {ranked['metric']} "
            f"({ranked['mode']}), these by {config.sweep.metric} ({config.sweep.mode})"
        )
    if info.config["evaluate"].get("protocol", "coco") != config.evaluate.protocol:
        raise UserError(f"sweep.warm_start {mask(uri)}: it has another evaluate.protocol")

    def former_value(field: str, _domain: Domain) -> Any:
        section, _, name = field.partition(".")
        return info.config[section].get(name)

    found = []
    for record in records.all.values():
        score = record.best(config.sweep.mode)
        if score is None or record.state not in ("finished", "stopped early"):
            continue
        try:
            space.check_point(record.params, "")
            point = space.complete(record.params, former_value)
            space.check_point(point, "")
        except UserError:
            continue
        found.append((point, score))
    if not found:
        raise UserError(f"sweep.warm_start {mask(uri)}: none of its trials is in sweep.space")
    return found


def _record_results(
    config: Config, trials: list[Trial], record: RunRecord, uri: str, run_id: str
) -> str:
    best = trials[0] if trials else None
    if best is None or best.best is None or best.status == "failed":
        why = next((f": {trial.error}" for trial in trials if trial.error), "")
        raise TrainingFailed(
            f"no trial reported {config.sweep.metric}{why}; their runs are in {mask(uri)}"
        )
    text = best_recipe(config, best, len(trials), record.name)
    client = connect(uri)
    client.log_text(run_id, text, "best.yaml")
    table = mask_tree(TrialTable(trials=trials).model_dump(mode="json"))
    client.log_text(run_id, json.dumps(table, indent=1), "trials.json")
    client.log_metric(run_id, config.sweep.metric, best.best)
    Storage(record.uri).write("best.yaml", text.encode())
    path = Path(record.uri) / "best.yaml"
    if "://" in record.uri:  # a copy for the next command
        path = Path.cwd() / f"{record.name}-best.yaml"
        write_durably(path, text.encode())
    delete_checkpoints(
        record.uri,
        [one.name for one in trials[1:] if one.status in ("finished", "stopped early")],
    )
    print(f"recipe of the best trial: {path}", file=sys.stderr, flush=True)
    return str(path)
