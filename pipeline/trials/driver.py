"""Run the trials of a sweep in Ray Tune.

Ray Tune counts the resources of a trial's function, not those of the workers that it starts. It
would start more trials than the cluster has resources for, and all would wait for each other.
Therefore this module computes the concurrency from the resources of a whole trial.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config import Config
from pipeline.distributed.ray_cluster import gpu_choice, node_resources, worker_slots
from pipeline.errors import UserError
from pipeline.training.run_record import RunRecord
from pipeline.trials.trial import TrialSettings, run_trial
from pipeline.trials.trial_records import TrialRecords

TRIAL_CPU = 0.01  # of a trial's function; Tune rejects 0
_ENVIRONMENT = {
    # Ray Train may report without the metric, between two evaluations.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # With Tune's handler an interrupted sweep would count as finished.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# Loggers of Tune that print tracebacks of trials, and what it has not found in its own files.
_SILENCED = (
    "ray.tune.analysis.experiment_analysis",
    "ray.tune.execution.tune_controller",
    "ray.tune.tune",
)


def concurrency(config: Config, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many whole trials fit on the nodes, at most ``sweep.concurrency``.

    ``nodes`` are the resources of each. Raises UserError if no trial fits.
    """
    ray = config.ray
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    gpu = gpu_choice(ray, total).used
    slots = worker_slots(ray, nodes, gpu, TRIAL_CPU)
    fits = slots // ray.max_workers
    if fits < 1:
        raise UserError(
            f"one trial takes {ray.max_workers} x {ray.cpus_per_worker:g} CPUs"
            f"{' and GPUs' if gpu else ''}, each on one node, and {TRIAL_CPU:g} CPUs beside them; "
            f"the cluster has nodes for {slots} such workers; lower ray.workers or "
            "ray.cpus_per_worker"
        )
    return min(fits, config.sweep.concurrency or fits)


def run_trials(
    settings: TrialSettings,
    searcher: Any,
    scheduler: Any,
    limits: Any,
    records: TrialRecords,
) -> None:
    """Run what the searcher suggests until it has no more or a limit is reached.

    The records say how each trial has ended.
    """
    from ray import tune

    from pipeline.trials.trial_reporter import TrialReporter

    os.environ.update(_ENVIRONMENT)
    for name in _SILENCED:  # failures are reported in one line each
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = settings.config

    def has_finished(name: str) -> bool | None:
        try:
            info = RunRecord(settings.storage, name).read()
        except OSError:  # unknown: the next start of the sweep looks again
            return None
        return info is not None and info.status == "finished"

    trainable = tune.with_resources(
        tune.with_parameters(run_trial, settings=settings.model_dump(mode="json")),
        {"CPU": TRIAL_CPU},
    )
    reporter = TrialReporter(config.sweep.metric, records, has_finished, limits.stop_all)
    with TemporaryDirectory(prefix="sweep-") as folder:  # Tune's own state, which is not read again
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=config.sweep.metric,
                mode=config.sweep.mode,
                num_samples=-1,  # until the searcher has no more
                max_concurrent_trials=concurrency(config, node_resources()),
                search_alg=searcher,
                scheduler=scheduler,
                trial_name_creator=_name,
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                stop=limits,
                failure_config=tune.FailureConfig(max_failures=config.sweep.retries),
                callbacks=[reporter],
            ),
        ).fit()


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _folder(trial: Any) -> str:
    """Return the name of Tune's folder for a trial, which may run several times."""
    return f"{_name(trial)}-{trial.trial_id}"
