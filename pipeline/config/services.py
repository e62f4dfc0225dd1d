"""What a training reports to, and what searches over trainings."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.config.base import Probability, Section


class TrackingConfig(Section):
    """The MLflow run."""

    uri: str | None = Field(
        None,
        description="MLflow tracking URI; unset: $MLFLOW_TRACKING_URI, else sqlite in ./mlflow",
    )
    experiment: str = Field("detection", min_length=1, description="MLflow experiment")
    required: bool = Field(
        True,
        description="refuse to start while the run store does not answer; false: record beside "
        "the checkpoints and send later",
    )


class RegistryConfig(Section):
    """The model registry."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$",
        description="registered model to add a version to, of letters, digits, '.', '_', '-'; "
        "none: do not",
    )
    score_threshold: Probability = Field(
        0.3, description="default lowest score of the registered model's answers"
    )


class SweepConfig(Section):
    """A search over any fields of the tree."""

    trials: int = Field(8, ge=1, description="trainings to run")
    concurrency: int = Field(
        0, ge=0, description="trials at a time; 0: as many as the cluster holds"
    )
    metric: str = Field("val/ap", description="metric to maximise, as logged per epoch")
    grace_epochs: int = Field(1, ge=1, description="ASHA: epochs before a trial may be stopped")
    reduction: int = Field(2, ge=2, description="ASHA: one in this many trials goes on")
    seed: int = Field(0, ge=0, description="seed of the search")
    space: dict[str, dict[str, Any]] = Field(
        {},
        description="field -> {uniform|loguniform: [low, high]} | {randint: [low, high]} | "
        "{choice: [values]}",
    )
