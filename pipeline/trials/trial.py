"""A trial: a whole training with the values of one point, in a process of Ray Tune."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.storage.document import Document
from pipeline.training.fit import fit
from pipeline.training.run_record import RunRecord
from pipeline.trials.trial_records import Params


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
    """Train the trial ``{"name": NAME, "params": {...}}``; resumes under the same name."""
    from ray.tune.integration.ray_train import TuneReportCallback

    given = TrialSettings.from_content(settings, "trial settings")
    name, params = trial["name"], trial["params"]
    info = RunRecord(given.storage, name).read()
    if info and info.status == "finished":
        return  # the sweep was killed before it recorded the end of the trial
    config = trial_config(given.config, params).replace(
        {"tracking.uri": given.tracking_uri, "ray.storage": given.storage}
    )
    fit(
        config,
        run=name,
        parent_run_id=given.parent_run_id,
        tags={"sweep": given.sweep, "trial": name},
        callbacks=[TuneReportCallback()],
        label=f"trial {name}",
    )
