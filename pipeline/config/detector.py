"""The network, what its anchors learn, and by which losses."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from model import NECKS
from model.assign import ASSIGNERS
from model.backbones import build_backbone, check_backbone
from model.losses import CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, OVERLAP_LOSSES
from pipeline.config.base import Probability, Section, one_of


class ModelConfig(Section):
    """The detector: backbone x neck x heads at one input size."""

    backbone: str = Field(
        "slim",
        description="feature extractor: slim, vgg16, resnet18, resnet34, resnet50, or timm:NAME "
        "where timm is installed",
    )
    neck: str = Field("retinanet", description="feature pyramid: fssd, retinanet, rfb or pafpn")
    image_size: int = Field(
        320,
        ge=64,
        le=4096,
        description="side of the square input, pixels; divisible by 64",
    )
    norm: Literal["batch", "group"] = Field(
        "batch",
        description="norms of the network; with group, steps do not depend on how a batch is split",
    )
    init: str | None = Field(
        None,
        description="weights to start from: a .pth or .safetensors file or http(s) URL, "
        "models:/NAME@ALIAS, or the folder of a run or checkpoint; none: random ones",
    )
    init_sha256: str | None = Field(
        None,
        pattern="^[0-9a-fA-F]{64}$",
        description="sha256 of that file, 64 hexadecimal digits; a URL needs it",
    )
    freeze_stages: int = Field(
        0, ge=0, description="first stages of the backbone that do not learn; 1 is the stem"
    )
    freeze_norm: bool = Field(
        False,
        description="keep statistics, scale and shift of the backbone's batch norms as they are",
    )

    def network(self) -> dict[str, Any]:
        """What `build_detector` takes, besides the number of classes."""
        return {
            "backbone": self.backbone,
            "neck": self.neck,
            "image_size": self.image_size,
            "norm": self.norm,
        }

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        check_backbone(value)
        return value

    @field_validator("neck")
    @classmethod
    def _known_neck(cls, value: str) -> str:
        return one_of(value, NECKS)

    @field_validator("image_size")
    @classmethod
    def _divisible(cls, value: int) -> int:
        if value % 64:
            low = value // 64 * 64
            raise ValueError(
                f"{value} is not divisible by 64; the nearest are {low} and {low + 64}"
            )
        return value

    @model_validator(mode="after")
    def _hash_of_url(self) -> ModelConfig:
        if (self.init or "").startswith(("http://", "https://")) and not self.init_sha256:
            raise ValueError("init is a URL: give init_sha256, the sha256 of the file it names")
        return self

    @model_validator(mode="after")
    def _norm_fits(self) -> ModelConfig:
        if self.norm == "group" and self.backbone.startswith("timm:"):
            raise ValueError(f"norm is group, but {self.backbone} has norms of its own")
        return self

    @model_validator(mode="after")
    def _stages_exist(self) -> ModelConfig:
        if self.freeze_stages:
            with torch.device("meta"):  # shapes without values: takes no time
                stages = len(build_backbone(self.backbone).stage_layers())
            if self.freeze_stages > stages:
                raise ValueError(
                    f"freeze_stages is {self.freeze_stages}; {self.backbone} has {stages} stages"
                )
        return self


class AssignConfig(Section):
    """Which anchors learn what. Flat over all assigners: fields the chosen one lacks are unused."""

    name: str = Field("mutual_guidance", description="assigner")
    sigma: float = Field(
        2.0,
        gt=1.0,
        le=100.0,
        description="mutual_guidance(_soft): how little scores amplify overlap",
    )
    localize_to_classify: bool = Field(
        True,
        description="mutual_guidance(_soft): regressed boxes choose what learns to classify; "
        "false: static anchors do",
    )
    classify_to_localize: bool = Field(
        True,
        description="mutual_guidance(_soft): class scores choose what learns to regress; "
        "false: static anchors do",
    )
    pos_threshold: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="anchor IoU from which an anchor counts as positive",
    )
    ignore_threshold: float = Field(
        0.4,
        gt=0.0,
        lt=1.0,
        description="anchor IoU from which an anchor counts as ignored",
    )
    topk: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="anchors per object that count towards its number of positives "
        "(mutual_guidance_soft, sim_ota) or become positive (task_aligned); unset: 15, 10, 13",
    )
    candidates: int = Field(
        9, ge=1, le=1000, description="atss: nearest cells per level and object"
    )
    radius: float = Field(
        2.5, gt=0.0, le=100.0, description="sim_ota: half side of the centre region, in strides"
    )
    iou_weight: float = Field(
        3.0, gt=0.0, le=1000.0, description="sim_ota: factor of -log(IoU) beside the class cost"
    )
    alpha: float = Field(1.0, gt=0.0, le=100.0, description="task_aligned: exponent of the score")
    beta: float = Field(6.0, gt=0.0, le=100.0, description="task_aligned: exponent of the IoU")

    @field_validator("name")
    @classmethod
    def _known_assigner(cls, value: str) -> str:
        return one_of(value, ASSIGNERS)

    @model_validator(mode="after")
    def _ordered(self) -> AssignConfig:
        if self.ignore_threshold > self.pos_threshold:
            raise ValueError(
                f"ignore_threshold {self.ignore_threshold} is above pos_threshold "
                f"{self.pos_threshold}; it must not be"
            )
        return self


class LossConfig(Section):
    """Losses and their weights. Flat over all losses."""

    classification: str = Field("focal", description="loss of the class scores")
    alpha: Probability | None = Field(
        None,
        description="focal: weight of positives; quality_focal: weight of the others; "
        "unset: 0.25, 0.75",
    )
    gamma: float | None = Field(
        None,
        ge=0.0,
        le=10.0,
        description="exponent that mutes easy scores; unset: 1 (focal), 2 (quality_focal)",
    )
    poly: float = Field(1.0, ge=0.0, description="quality_focal: factor of the term (1 - p_t)^3")
    classification_weight: float = Field(1.0, ge=0.0, description="factor of the class loss")
    localization: str = Field("balanced_l1", description="loss of the offsets")
    localization_weight: float = Field(1.0, ge=0.0, description="factor of the offset loss")
    overlap: str = Field("none", description="further loss of the decoded boxes")
    overlap_weight: float = Field(2.0, ge=0.0, description="factor of the overlap loss")

    @field_validator("classification")
    @classmethod
    def _known_classification(cls, value: str) -> str:
        return one_of(value, CLASSIFICATION_LOSSES)

    @field_validator("localization")
    @classmethod
    def _known_localization(cls, value: str) -> str:
        return one_of(value, LOCALIZATION_LOSSES)

    @field_validator("overlap")
    @classmethod
    def _known_overlap(cls, value: str) -> str:
        return one_of(value, OVERLAP_LOSSES)
