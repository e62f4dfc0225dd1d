"""The driver of a sweep: ASHA over epochs, Optuna over fields, one MLflow run per trial.

Ray Tune counts the resources of a trial's function, not those of the workers that it starts. It
would start more trials than the cluster has resources for, and all would wait for each other.
Therefore this module computes the concurrency from the resources of a whole trial.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from pipeline.config import Config, set_dotted
from pipeline.data import check_batches
from pipeline.distributed.ray_cluster import check_cluster_paths, gpu_choice, ray_cluster
from pipeline.errors import UserError
from pipeline.metrics.coco import METRIC_NAMES
from pipeline.storage.document import Document
from pipeline.storage.redact import mask, mask_tree
from pipeline.sweep.space import build_space
from pipeline.tracking import (
    connect,
    create_run,
    finish_run,
    resolve_run_store,
    resume_run,
    spool_folder,
)
from pipeline.tracking.run import FinalStatus
from pipeline.training.fit import absolute_paths, check_data, close_run, fit
from pipeline.training.run_record import CHANGEABLE, Resume, RunRecord

TRIAL_CPU = 0.01  # of a trial's function; Tune rejects 0
MAX_CHILD_RUNS = 10_000
TrialStatus = Literal["finished", "failed", "stopped early"]


@dataclass(frozen=True)
class Trial:
    """One row of the table of results."""

    name: str
    params: dict[str, Any]  # values by dotted field
    best: float | None  # best score; None if none was reported
    epochs: float  # epochs trained
    status: TrialStatus
    run_id: str | None  # of MLflow


class TrialTable(Document):
    """``trials.json`` of a sweep's MLflow run: all trials, best first."""

    trials: list[Trial]


class TrialSettings(Document):
    """Everything that the driver of a sweep passes to a trial, apart from the values to try."""

    config: Config
    sweep: str = Field(description="name of the sweep")
    storage: str = Field(description="folder or URI of the sweep, where trials are stored")
    tracking_uri: str
    parent_run_id: str = Field(description="MLflow run of the sweep")


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
    """Search ``sweep.space`` for the highest ``sweep.metric``; resumable by name like a training.

    Raises UserError for mistakes in the recipe and if no trial reported the metric.
    """
    began = time.monotonic()
    config = absolute_paths(config)
    if config.data.val is None:
        raise UserError("data.val is not set; a sweep compares its trials on it")
    manifests = check_data(config)
    space = build_space(config)
    known = [f"val/{name}" for name in METRIC_NAMES]
    if config.sweep.metric not in known:
        raise UserError(
            f"sweep.metric {config.sweep.metric!r} is not logged; choose from: {', '.join(known)}"
        )
    check_batches(config, config.ray.max_workers)
    check_cluster_paths(config)
    uri = resolve_run_store(config.tracking)
    with contextlib.closing(RunRecord(config.ray.storage_uri(), run)) as record:
        record.check_storage()
        record.hold(config.ray.lease_seconds)
        run_id = record.resumable_run_id(
            resume, config, [name for name in CHANGEABLE if name != "sweep"]
        )
        if run_id is None:
            # Without a spool: the table of results is read from the store, which is required.
            run_id = create_run(uri, config, run, {"sweep": run}, None, manifests)
        else:
            resume_run(uri, run_id)
        record.write(run_id, "running", config)
        with close_run(uri, run_id, record, config), ray_cluster(config.ray, sweep=True):
            record.when_lost(_interrupt)
            results = _tune(config, space, record, uri, run_id)
            record.check_lease()
            trials = _table(results, config, record, uri, run_id)
            best_yaml = _record_results(config, trials, record, uri, run_id)
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
    """Return how many whole trials fit in the cluster, at most ``sweep.concurrency``."""
    ray = config.ray
    workers = ray.max_workers
    fits = math.floor(resources.get("CPU", 0) / (workers * ray.cpus_per_worker + TRIAL_CPU))
    gpu = gpu_choice(ray, resources).used
    if gpu:
        fits = min(fits, math.floor(resources.get("GPU", 0) / workers))
    if fits < 1:
        raise UserError(
            f"one trial takes {workers} x {ray.cpus_per_worker:g} CPUs"
            f"{' and GPUs' if gpu else ''}, more than the cluster has; lower ray.workers or "
            "ray.cpus_per_worker"
        )
    return min(fits, config.sweep.concurrency or fits)


def _interrupt() -> None:
    """End the main thread as Ctrl-C does: Tune cannot be stopped otherwise from another thread."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _tune(config: Config, space: dict[str, Any], record: RunRecord, uri: str, run_id: str) -> Any:
    import optuna
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from pipeline.sweep.trial_reporter import TrialReporter

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Ray Train may report without the metric, between two evaluations.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # With Tune's handler an interrupted sweep would count as finished, and could not be resumed.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    settings = config.sweep
    trainable = tune.with_resources(
        tune.with_parameters(
            _trial,
            settings=TrialSettings(
                config=config,
                sweep=record.name,
                storage=record.uri,
                tracking_uri=uri,
                parent_run_id=run_id,
            ).model_dump(mode="json"),
        ),
        {"CPU": TRIAL_CPU},
    )
    folder = f"{record.uri}/tune"
    if tune.Tuner.can_restore(folder):
        return _restore_tuner(folder, trainable, record.name).fit()
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
                # No decision at the last epoch: a trial that reaches it is complete.
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
            callbacks=[TrialReporter(settings.metric, settings.trials)],
        ),
    )
    return tuner.fit()


def _restore_tuner(folder: str, trainable: Any, name: str) -> Any:
    """Restore an unfinished sweep. Raises UserError if another version wrote Tune's state."""
    from ray import tune

    try:
        return tune.Tuner.restore(
            folder, trainable=trainable, resume_unfinished=True, restart_errored=True
        )
    except (ImportError, AttributeError) as error:  # Tune pickles our callbacks by name
        raise UserError(
            f"sweep {name!r} was started by another version of this software ({error}); resume it "
            "with that version, or choose another --run name"
        ) from None


def _trial(params: dict[str, Any], settings: dict[str, Any]) -> None:
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    given = TrialSettings.from_content(settings, "trial settings")
    trial_id = tune.get_context().get_trial_id()
    info = RunRecord(given.storage, trial_id).read()
    if info and info.status == "finished":
        return  # the sweep was killed before Tune recorded the end of the trial
    config = given.config.replace(
        {
            **params,
            "data.test": None,  # the test set must not influence the selection
            "registry.name": None,
            "tracking.uri": given.tracking_uri,
            "ray.storage": given.storage,
        }
    )
    fit(
        config,
        run=trial_id,
        parent_run_id=given.parent_run_id,
        tags={"sweep": given.sweep, "trial": trial_id},
        callbacks=[TuneReportCallback()],
        label=f"trial {trial_id}",
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
                status=_close_trial_run(uri, run, spool, result.error is not None, complete),
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
        max_results=MAX_CHILD_RUNS,
    )
    return {run.data.tags["trial"]: run for run in found if "trial" in run.data.tags}


def _close_trial_run(uri: str, run: Any, spool: Path, failed: bool, complete: bool) -> TrialStatus:
    """Return how a trial ended; set it in MLflow if the trial could not close its run."""
    status: TrialStatus = "failed" if failed else "finished" if complete else "stopped early"
    if run is not None and run.info.status == "RUNNING":
        end: FinalStatus = "FAILED" if failed else "FINISHED" if complete else "KILLED"
        reason = "stopped early by asha" if end == "KILLED" else ""
        finish_run(uri, run.info.run_id, spool, end, reason)
    return status


def _record_results(
    config: Config, trials: list[Trial], record: RunRecord, uri: str, run_id: str
) -> str:
    best = trials[0] if trials else None
    if best is None or best.best is None:
        raise UserError(
            f"no trial reported {config.sweep.metric}; their runs in {mask(uri)} say why"
        )
    text = best_recipe(config, best, len(trials), record.name)
    client = connect(uri)
    client.log_text(run_id, text, "best.yaml")
    table = mask_tree(TrialTable(trials=trials).model_dump(mode="json"))
    client.log_text(run_id, json.dumps(table, indent=1), "trials.json")
    client.log_metric(run_id, config.sweep.metric, best.best)
    folder = Path.cwd() if "://" in record.uri else Path(record.uri)
    path = folder / "best.yaml"
    path.write_text(text, encoding="utf-8")
    print(f"recipe of the best trial: {path}", file=sys.stderr, flush=True)
    return str(path)


def best_recipe(config: Config, best: Trial, trials: int, sweep_name: str) -> str:
    """Return the recipe of a sweep with the values of its best trial, and secrets masked."""
    tree = config.model_dump(mode="json", exclude_defaults=True, exclude={"sweep": True})
    if config.tracking.uri and mask(config.tracking.uri) != config.tracking.uri:
        del tree["tracking"]["uri"]  # it is then read from the environment, as is
    for field, value in best.params.items():
        set_dotted(tree, field, value)
    header = (
        f"# Best of {trials} trials of the sweep {sweep_name}: "
        f"{config.sweep.metric} {best.best:.4f} (trial {best.name}).\n"
        "# Train with: python -m jobs.train --config FILE\n"
    )
    return header + yaml.safe_dump(mask_tree(tree), sort_keys=False)
