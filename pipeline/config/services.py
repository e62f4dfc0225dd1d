"""The sections ``tracking``, ``registry``, ``promote`` and ``sweep``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Probability, Section


class TrackingConfig(Section):
    """The run store (MLflow) that runs report to."""

    uri: str | None = Field(
        None,
        description="MLflow tracking URI; unset: $MLFLOW_TRACKING_URI, else SQLite in ./mlflow",
    )
    artifacts: str | None = Field(
        None,
        description="absolute folder or URI, the same for all nodes, in which a new experiment "
        "stores its artifacts and models; unset: what the MLflow server decides, or a folder next "
        "to the SQLite file; required for any other database",
    )
    experiment: str = Field(
        "detection",
        min_length=1,
        max_length=500,
        description="name of the MLflow experiment, at most 500 characters",
    )
    required: bool = Field(
        True,
        description="refuse to start if the run store does not respond; false: record next to the "
        "checkpoints and send later",
    )

    max_logged_nodes: int = Field(
        16,
        ge=1,
        description="nodes up to which the load of each one is logged; of more nodes: minimum, "
        "mean and maximum",
    )

    @field_validator("artifacts")
    @classmethod
    def _check_artifacts(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value and not Path(value).is_absolute():
            raise ValueError(
                f"{value!r} depends on the working directory; give an absolute folder or a URI"
            )
        return value

    def store_uri(self) -> str:
        """Return the URI as set, else ``$MLFLOW_TRACKING_URI``, else a SQLite file in ./mlflow."""
        default = f"sqlite:///{Path.cwd() / 'mlflow' / 'mlflow.db'}"
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


class RegistryConfig(Section):
    """The model registry (MLflow)."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$",
        description="registered model that gets a new version; letters, digits, '.', '_', '-' and "
        "spaces; unset: nothing is registered",
    )
    min_ap: float | None = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="a training is registered only if val/ap (without data.val: test/ap) is above "
        "this; null: always",
    )
    score_threshold: Probability = Field(
        0.3, description="default score threshold of the registered model's predictions"
    )


class PromoteConfig(Section):
    """The gate: what a version must show on an evaluation set to become the champion."""

    min_gain: float = Field(
        0.0,
        ge=-1.0,
        le=1.0,
        description="AP by which the candidate must exceed the champion: the lower bound of the "
        "interval of the gain must be above it",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1.0, description="of the intervals, over images of the evaluation set"
    )
    resamples: int = Field(1000, ge=100, description="bootstrap resamples of the images")
    max_class_loss: float | None = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="AP that a class may lose; a larger loss refuses the candidate if its interval "
        "excludes 0; null: no limit",
    )
    max_latency_ratio: float | None = Field(
        None,
        gt=0.0,
        description="seconds per image of the candidate over those of the champion, both measured "
        "in turn on this machine; null: measured without a limit",
    )
    max_megabytes: float | None = Field(
        None, gt=0.0, description="size of the candidate's weights; null: no limit"
    )
    min_ap: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="AP above which a first version becomes champion, where there is none to beat",
    )


class ConfirmConfig(Section):
    """Trainings after a search: its best points, and the recipe, on seeds it has not seen."""

    points: int = Field(
        3,
        ge=0,
        description="best points that are trained again; 0: none, and the best trial stands on one "
        "seed",
    )
    seeds: int = Field(
        2, ge=1, description="further seeds of each of these points, and of the recipe as it is"
    )


class SweepConfig(Section):
    """A search over fields of the configuration."""

    trials: int = Field(
        8, ge=1, description="number of trials (trainings); the searcher grid tries all points"
    )
    searcher: Literal["random", "grid", "tpe"] = Field(
        "tpe", description="random, grid (all combinations) or tpe (Optuna's estimator)"
    )
    points: list[dict[str, Any]] = Field(
        [], description="points to try first: field -> value; other fields are drawn"
    )
    warm_start: str | None = Field(
        None,
        description="folder or URI of an earlier sweep, whose trials the searcher learns from",
    )
    scheduler: Literal["none", "asha"] = Field(
        "asha", description="asha stops all but the best trials early, none stops no trial"
    )
    max_hours: float = Field(
        0.0, ge=0.0, description="hours after which a search ends; 0: no limit"
    )
    max_epochs: float = Field(
        0.0,
        ge=0.0,
        description="epochs of all trials together after which a search ends; 0: no limit",
    )
    retries: int = Field(
        1, ge=0, description="how often a failed trial is resumed from its checkpoint"
    )
    concurrency: int = Field(
        0, ge=0, description="trials that run at the same time; 0: as many as fit the cluster"
    )
    metric: str = Field("val/ap", description="logged metric that ranks the trials")
    mode: Literal["max", "min"] = Field("max", description="whether higher or lower is better")
    grace_epochs: int | None = Field(
        None,
        ge=1,
        description="ASHA: epochs before a trial may be paused; unset: the warm-up, at least "
        "sweep.grace_share",
    )
    grace_share: Probability = Field(
        0.15, description="ASHA: share of the epochs before a trial may be paused"
    )
    reduction: int = Field(3, ge=2, description="ASHA: one in this many trials is promoted")
    seed: int = Field(0, ge=0, description="seed of the search")
    confirm: ConfirmConfig = Field(default_factory=ConfirmConfig, description=ConfirmConfig.__doc__)
    space: dict[str, dict[str, Any]] = Field(
        {},
        description="field -> {choice|grid: [values]} | {uniform|loguniform|int: [low, high]}, "
        "with step: STEP for equally spaced values and when: {field: value} for a condition",
    )
