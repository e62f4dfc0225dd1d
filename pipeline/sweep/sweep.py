"""The driver of a search: ASHA over epochs, Optuna over fields, one MLflow run per trial.

Ray Tune counts only the trial's function, not the workers that it starts. Left alone it would
start more trials than the cluster holds and all would wait for each other, so the concurrency is
computed here from what a whole trial takes.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, set_dotted
from pipeline.distributed.ray_cluster import check_cluster_paths, ray_cluster
from pipeline.errors import UserError
from pipeline.evaluation.coco import NAMES
from pipeline.sweep.space import build_space
from pipeline.tracking import (
    connect,
    create_run,
    finish_run,
    mask,
    resolve_uri,
    resume_run,
    spool_folder,
)
from pipeline.tracking.run import FinalStatus
from pipeline.training.fit import absolute_paths, check_data, closing_run, fit
from pipeline.training.run_record import MAY_CHANGE, Resume, RunRecord, storage_root

TRIAL_CPU = 0.01  # Tune refuses 0


@dataclass(frozen=True)
class Trial:
    """One row of the table."""

    name: str
    params: dict[str, Any]
    best: float | None
    epochs: float
    status: str
    run_id: str | None


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
    """Search ``sweep.space`` for the highest ``sweep.metric``; resumed by name like a training.

    Raises UserError for mistakes in the recipe and if no trial reported the metric.
    """
    began = time.monotonic()
    config = absolute_paths(config)
    if config.data.val is None:
        raise UserError("data.val is not set; a sweep compares its trials on it")
    manifests = check_data(config)
    space = build_space(config)
    known = [f"val/{name}" for name in NAMES]
    if config.sweep.metric not in known:
        raise UserError(
            f"sweep.metric {config.sweep.metric!r} is not logged; choose from: {', '.join(known)}"
        )
    check_cluster_paths(config)
    uri = resolve_uri(config.tracking)
    with contextlib.closing(RunRecord(storage_root(config), run)) as record:
        record.check_storage()
        record.hold()
        run_id = record.resumable(resume, config, [name for name in MAY_CHANGE if name != "sweep"])
        if run_id is None:
            # Without a spool: what chooses among trials asks the store, which must be there.
            run_id = create_run(uri, config, run, {"sweep": run}, None, manifests)
        else:
            resume_run(uri, run_id)
        record.write(run_id, "running", config)
        with closing_run(uri, run_id, record, config), ray_cluster(config.ray, sweep=True):
            results = _tune(config, space, record, uri, run_id)
            trials = _table(results, config, record, uri, run_id)
            best_yaml = _write_best(config, trials, record, uri, run_id)
    return SweepResult(
        run=run,
        run_id=run_id,
        tracking_uri=uri,
        metric=config.sweep.metric,
        trials=trials,
        best_yaml=best_yaml,
        seconds=round(time.monotonic() - began, 1),
    )


def concurrency(config: Config, resources: Mapping[str, float]) -> int:
    """How many whole trials the cluster holds at a time, at most ``sweep.concurrency``."""
    ray = config.ray
    workers = ray.max_workers
    fits = math.floor(resources.get("CPU", 0) / (workers * ray.cpus_per_worker + TRIAL_CPU))
    if ray.gpu:
        fits = min(fits, math.floor(resources.get("GPU", 0) / workers))
    if fits < 1:
        raise UserError(
            f"one trial takes {workers} x {ray.cpus_per_worker:g} CPUs"
            f"{' and GPUs' if ray.gpu else ''}, more than the cluster has; lower ray.workers or "
            "ray.cpus_per_worker"
        )
    return min(fits, config.sweep.concurrency or fits)


def _tune(config: Config, space: dict[str, Any], record: RunRecord, uri: str, run_id: str) -> Any:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from pipeline.sweep.trial_reporter import TrialLines

    # A checkpoint between two evaluations reports no figure, and that is no mistake.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    settings = config.sweep
    trainable = tune.with_resources(
        tune.with_parameters(
            _trial,
            base=config.model_dump(mode="json"),
            sweep_name=record.name,
            storage=record.uri,
            uri=uri,
            parent_run_id=run_id,
        ),
        {"CPU": TRIAL_CPU},
    )
    folder = f"{record.uri}/tune"
    if tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(
            folder, trainable=trainable, resume_unfinished=True, restart_errored=True
        )
        return tuner.fit()
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=settings.metric,
            mode="max",
            num_samples=settings.trials,
            max_concurrent_trials=concurrency(config, ray.cluster_resources()),
            search_alg=OptunaSearch(seed=settings.seed),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                # No decision at the last epoch: a trial that gets there ends by itself.
                max_t=max(settings.grace_epochs, math.ceil(config.train.epochs) - 1),
                grace_period=settings.grace_epochs,
                reduction_factor=settings.reduction,
                stop_last_trials=False,
            ),
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=record.uri,
            verbose=0,
            callbacks=[TrialLines(settings.metric, settings.trials)],
        ),
    )
    return tuner.fit()


def _trial(
    params: dict[str, Any],
    base: dict[str, Any],
    sweep_name: str,
    storage: str,
    uri: str,
    parent_run_id: str,
) -> None:
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    trial_id = tune.get_context().get_trial_id()
    begun = RunRecord(storage, trial_id).read()
    if begun and begun["status"] == "finished":
        return  # the sweep was killed between the trial's end and Tune's hearing of it
    config = Config.from_dict(base).replace(
        {
            **params,
            "data.test": None,  # what chooses must not be what judges
            "registry.name": None,
            "tracking.uri": uri,
            "ray.storage": storage,
        }
    )
    fit(
        config,
        run=trial_id,
        parent_run_id=parent_run_id,
        tags={"sweep": sweep_name, "trial": trial_id},
        callbacks=[TuneReportCallback()],
    )


def _table(
    results: Any, config: Config, record: RunRecord, uri: str, parent_run_id: str
) -> list[Trial]:
    metric = config.sweep.metric
    runs = _child_runs(uri, parent_run_id)
    rows = []
    for result in results:
        trial_id = Path(result.path).name
        history = result.metrics_dataframe
        values = history[metric].dropna() if history is not None and metric in history else []
        epochs = float((result.metrics or {}).get("epoch", 0.0))
        run = runs.get(trial_id)
        complete = epochs >= config.train.epochs
        spool = spool_folder(f"{record.uri}/{trial_id}")
        rows.append(
            Trial(
                name=trial_id,
                params={key: result.config[key] for key in config.sweep.space},
                best=float(max(values)) if len(values) else None,
                epochs=epochs,
                status=_settle(uri, run, spool, result.error is not None, complete),
                run_id=run.info.run_id if run else None,
            )
        )
    return sorted(rows, key=lambda row: (row.best is None, -(row.best or 0.0), row.name))


def _child_runs(uri: str, parent_run_id: str) -> dict[str, Any]:
    client = connect(uri)
    parent = client.get_run(parent_run_id)
    found = client.search_runs(
        [parent.info.experiment_id],
        filter_string=f"tags.mlflow.parentRunId = '{parent_run_id}'",
        max_results=10_000,
    )
    return {run.data.tags["trial"]: run for run in found if "trial" in run.data.tags}


def _settle(uri: str, run: Any, spool: Path, failed: bool, complete: bool) -> str:
    """The trial's true end, also in MLflow where it could not close its run itself."""
    status = "failed" if failed else "finished" if complete else "stopped early"
    if run is not None and run.info.status == "RUNNING":
        end: FinalStatus = "FAILED" if failed else "FINISHED" if complete else "KILLED"
        reason = "stopped early by asha" if end == "KILLED" else ""
        finish_run(uri, run.info.run_id, spool, end, reason)
    return status


def _write_best(
    config: Config, trials: list[Trial], record: RunRecord, uri: str, run_id: str
) -> str:
    best = trials[0] if trials else None
    if best is None or best.best is None:
        raise UserError(
            f"no trial reported {config.sweep.metric}; see the trials' runs in {uri} for why"
        )
    tree = config.model_dump(mode="json", exclude_defaults=True, exclude={"sweep": True})
    if config.tracking.uri and mask(config.tracking.uri) != config.tracking.uri:
        del tree["tracking"]["uri"]  # a password is no part of a recipe
    for field, value in best.params.items():
        set_dotted(tree, field, value)
    header = (
        f"# Best of {len(trials)} trials of the sweep {record.name}: "
        f"{config.sweep.metric} {best.best:.4f} (trial {best.name}).\n"
        "# Train with: python -m jobs.train --config FILE\n"
    )
    text = header + yaml.safe_dump(tree, sort_keys=False)
    client = connect(uri)
    client.log_text(run_id, text, "best.yaml")
    client.log_dict(run_id, {"trials": [vars(trial) for trial in trials]}, "trials.json")
    client.log_metric(run_id, config.sweep.metric, best.best)
    folder = Path.cwd() if "://" in record.uri else Path(record.uri)
    path = folder / "best.yaml"
    path.write_text(text, encoding="utf-8")
    print(f"the best trial's recipe is {path}", file=sys.stderr, flush=True)
    return str(path)
