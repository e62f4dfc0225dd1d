"""A trial: a whole training with the values of one point, in a process of Ray Tune."""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field

from pipeline.checkpoints.store import CheckpointStore
from pipeline.config import Config
from pipeline.distributed import ray_private_api
from pipeline.errors import UserError
from pipeline.storage.document import Document
from pipeline.storage.folder import join
from pipeline.storage.redact import mask
from pipeline.training.error_hints import UnrecoverableFailure
from pipeline.training.fit import fit
from pipeline.training.run_record import RunRecord
from pipeline.trials.trial_records import Params, load_record

MISTAKE = "mistake"  # result of a trial that would only fail again
FORMER_SECONDS = 30.0  # for the process that trained the trial before to end


class TrialSettings(Document):
    """Everything that the driver of a sweep passes to a trial, apart from the values to try."""

    config: Config
    sweep: str = Field(description="name of the sweep")
    storage: str = Field(description="folder or URI of the sweep, where trials are stored")
    tracking_uri: str
    parent_run_id: str = Field(description="MLflow run of the sweep")


def trial_config(config: Config, params: Params) -> Config:
    """Return the configuration of a trial apart from where it is stored. Raises UserError."""
    return config.replace(
        {
            **params,
            "data.test": None,  # the test set must not influence the selection
            "registry.name": None,
        }
    )


def run_trial(trial: dict[str, Any], settings: dict[str, Any]) -> None:
    """Train the trial ``{"name": NAME, "params": {...}}``; resumes under the same name.

    Raises what a retry may repair; other errors are reported as the result `MISTAKE`.
    """
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    ray_private_api.hide_exit_in_callbacks()
    given = TrialSettings.from_content(settings, "trial settings")
    name, params = trial["name"], trial["params"]
    info = RunRecord(given.storage, name).read()
    if info and info.status == "finished":  # the sweep was killed before it recorded this
        _report_unrecorded(given.storage, name)
        return
    config = trial_config(given.config, params).replace(
        {"tracking.uri": given.tracking_uri, "ray.storage": given.storage}
    )
    if info is not None:
        _wait_for_former(given, name)
        _report_unrecorded(given.storage, name)
    try:
        fit(
            config,
            run=name,
            parent_run_id=given.parent_run_id,
            tags={"sweep": given.sweep, "trial": name},
            callbacks=[TuneReportCallback()],
            label=f"trial {name}",
        )
    except (UserError, UnrecoverableFailure) as error:
        # Tune would retry a trial that raises.
        tune.report({MISTAKE: mask(str(error))})


def _report_unrecorded(storage: str, name: str) -> None:
    """Report the evaluations in the checkpoints that were not recorded, oldest first.

    They are not repeated: a worker writes them before it reports them, and may be killed between.
    """
    from ray import tune

    recorded = load_record(storage, name).epochs
    for item in CheckpointStore(join(storage, name)).saved():
        if item.meta.metrics and item.meta.epoch > recorded:
            tune.report({"step": item.step, "epoch": item.meta.epoch, **item.meta.metrics})


def _wait_for_former(settings: TrialSettings, name: str) -> None:
    """Wait until the process that trained this trial before, and was stopped, has ended."""
    deadline = time.monotonic() + FORMER_SECONDS
    while True:
        record = RunRecord(settings.storage, name)
        try:
            record.check_storage()
            record.hold(settings.config.ray.lease_seconds)
        except UserError:
            if time.monotonic() > deadline:
                return  # `fit` reports the error
            time.sleep(0.5)
        else:
            record.close()
            return


def has_checkpoint(storage: str, name: str) -> bool:
    """Return whether a trial in the folder of a sweep has a checkpoint to resume from."""
    return bool(CheckpointStore(join(storage, name)).saved())
