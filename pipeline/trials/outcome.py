"""What trials are worth: each scored once on ``data.val``, in tasks of Ray, and kept.

The predictions before NMS and the matches are stored in the folders of the trials. Intervals,
comparisons of trials and other settings of post-processing then need no network, also after the
checkpoints were deleted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pipeline.config import Config
from pipeline.data import load_manifest
from pipeline.distributed.ray_cluster import gpu_choice
from pipeline.errors import OutageError, UserError
from pipeline.progress import Progress
from pipeline.storage.redact import error_line, mask
from pipeline.training.stop import StopSignal
from pipeline.trials.outcome_record import (
    TrialOutcome,
    load_matches,
    load_predictions,
    stored_outcome,
)
from pipeline.trials.score_trial import score_trial, selected_checkpoint
from pipeline.trials.training_figures import TrainingFigures, training_figures
from pipeline.trials.trial import TrialSettings, trial_config
from pipeline.trials.trial_records import TrialRecords

__all__ = ["TrialOutcome", "load_matches", "load_predictions", "outcomes"]

_POLL_SECONDS = 1.0  # between two looks at the stop signal


def outcomes(
    settings: TrialSettings, names: Sequence[str], stop: StopSignal | None = None
) -> dict[str, TrialOutcome]:
    """Return the outcomes of trials in ``settings.storage``, in a process that is connected to Ray.

    One that is not stored yet, or not of the selected checkpoint, is made by a task with the
    resources of a worker. A trial without one, such as one that failed before its first evaluation,
    is left out with a line on stderr. After a request to stop, those that are missing are left out;
    Ctrl-C cancels the tasks as well. Raises OutageError if a store does not respond.
    """
    records = TrialRecords(settings.storage)
    records.load()
    found: dict[str, TrialOutcome] = {}
    missing: dict[str, tuple[Config, TrainingFigures]] = {}
    unscored = []
    content_hash = cache(lambda uri: load_manifest(uri).content_hash)
    for name in names:
        if stop is not None and stop.received.is_set():
            break
        record = records.all.get(name)
        config = trial_config(settings.config, record.params if record else {})
        selected = selected_checkpoint(settings.storage, name)
        known = stored_outcome(settings.storage, name, selected, content_hash(config.data.val))
        if known is not None:
            found[name] = known
        elif selected is None:
            unscored.append(name)
        else:
            figures = training_figures(
                settings.tracking_uri, settings.storage, name, config.train.batch_size
            )
            missing[name] = config, figures
    if unscored:
        _print(f"not scored, since no evaluated checkpoint is left: trial {', '.join(unscored)}")
    found |= _in_tasks(settings, missing, stop)
    return {name: found[name] for name in names if name in found}


def _in_tasks(
    settings: TrialSettings,
    trials: Mapping[str, tuple[Config, TrainingFigures]],
    stop: StopSignal | None,
) -> dict[str, TrialOutcome]:
    """Score trials in tasks of Ray. Those that fail are left out, with a line each."""
    if not trials:
        return {}
    import ray

    of_worker = settings.config.ray
    gpu = gpu_choice(of_worker, ray.cluster_resources()).used
    # A trial has several workers with these resources, so that a task fits wherever one fits.
    task = ray.remote(num_cpus=of_worker.cpus_per_worker, num_gpus=1 if gpu else 0)(_score)
    running: dict[Any, str] = {
        task.remote(config.model_dump(mode="json"), settings.storage, name, figures): name
        for name, (config, figures) in trials.items()
    }
    progress = Progress("scoring", len(running), "trials")
    found = {}
    try:
        while running and not (stop is not None and stop.received.is_set()):
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                name = running.pop(reference)
                try:
                    content = ray.get(reference)
                except ray.exceptions.RayError as error:
                    _print(f"trial {name} is not scored: {_reason(error)}")
                else:
                    found[name] = TrialOutcome.from_content(content, name)
                progress.advance()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    progress.finish()
    return found


def _score(
    config: dict[str, Any], storage: str, name: str, figures: TrainingFigures
) -> dict[str, Any]:
    """Score a trial in a worker of Ray, with the threads of its training."""
    import torch

    from pipeline.training.worker import compute_threads

    given = Config.model_validate(config)
    torch.set_num_threads(compute_threads(given))
    return score_trial(given, storage, name, figures).model_dump(mode="json")


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    known = isinstance(cause, UserError | OutageError | OSError)
    return error_line(cause if known else error)


def _print(text: str) -> None:
    print(mask(text), file=sys.stderr, flush=True)
