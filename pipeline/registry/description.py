"""``detector.json`` of a bundle: everything about a registered detector except its weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import DetectorSpec
from pipeline.storage.document import Document


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PredictionDefaults(_Part):
    """The parameters of a prediction unless the caller sets them."""

    score_threshold: float
    nms_iou: float
    max_detections: int


class DetectorDescription(Document):
    """What a bundle says about its detector. Fields with a default are missing in old bundles."""

    # 1 had no anchors in the spec and no temperature, 2 no score thresholds of classes.
    FORMAT_VERSION: ClassVar[int] = 3

    package: str = Field(description="name of the bundle's code, unique to the version")
    spec: DetectorSpec
    classes: list[str] = Field(description="class names in the order of the labels")
    fit: Literal["stretch", "letterbox"] = "stretch"
    defaults: PredictionDefaults
    score_thresholds: dict[str, float] = Field(
        default={},
        description="by class, of uncalibrated scores, instead of the default score threshold",
    )
    max_candidates: int = Field(description="maximum boxes per image before NMS")
    class_agnostic: bool = False
    temperature: float | None = Field(
        default=None,
        gt=0.0,
        description="of calibrated scores, fitted on data.val; None without it and in format 1",
    )
    origin: dict[str, str] = Field(description="run, revision and data fingerprints")
