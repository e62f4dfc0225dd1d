"""What a worker returns to the driver: how the training ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config import DetectorSpec
from pipeline.metrics.summary import EvaluationSummary
from pipeline.storage.document import Document


class Finished(Document):
    """A training that reached its end. Every rank returns the same."""

    outcome: Literal["finished"] = "finished"
    checkpoint: str = Field(description="name of the selected checkpoint")
    best_step: int = Field(description="step of the selected checkpoint")
    total_steps: int = Field(description="steps of the whole training")
    classes: list[str]
    spec: DetectorSpec
    metrics: dict[str, float] = Field(description="of the selected checkpoint: val/..., test/...")
    test: EvaluationSummary | None = Field(default=None, description="of data.test, if it is set")
    weights_sha256: str = Field(description="of the last step, not of the selected one")
    ema_sha256: str = Field(description="of the last step, not of the selected one")
    seconds: float = Field(default=0.0, description="duration of this attempt")


class Stopped(Document):
    """A training that stopped on request. An exception would make Ray Train restart it."""

    outcome: Literal["stopped"] = "stopped"
    reason: str


class Failed(Document):
    """A failure that a restart would only repeat."""

    outcome: Literal["failed"] = "failed"
    reason: str


TrainOutcome = Finished | Stopped | Failed
