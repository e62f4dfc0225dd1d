"""Sections of the network, of what its anchors learn, and of the losses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from model.anchor_shapes import (
    AnchorShapes,
    check_base,
    check_factors,
    check_per_cell,
    check_strides,
)
from model.names import BACKBONE_NAMES, NECK_NAMES, TIMM_PREFIX, check_backbone
from model.options import (
    ASSIGNER_LOSSES,
    ASSIGNER_OPTIONS,
    FOLLOWING_OPTIONS,
    LossOptions,
    check_threshold_order,
    former_assigner_options,
    loss_default,
)
from model.published import PUBLISHED, check_published
from pipeline.config.base import Section, one_of


class ModelConfig(Section):
    """The detector: backbone x neck x heads at one input size."""

    backbone: str = Field(
        "slim",
        description=f"feature extractor: {', '.join(BACKBONE_NAMES)}, "
        f"or {TIMM_PREFIX}NAME if timm is installed",
    )
    neck: str = Field("retinanet", description=f"feature pyramid: {', '.join(NECK_NAMES)}")
    neck_variant: Literal["compact", "published"] = Field(
        "compact",
        description="compact: this project's necks; published: as the authors of the paper have "
        "them, wider and slower",
    )
    strides: tuple[int, ...] = Field(
        (),
        description="strides of the levels, doubling, from 8, 16 or 32 to at most 128; empty: 8 to "
        "64 below 512 pixels, 8 to 128 from there",
    )
    head: Literal["plain", "decoupled"] = Field(
        "plain",
        description="per level and task: plain is a 3x3 convolution, decoupled a 3x3 with norm and "
        "activation and a 1x1",
    )
    activation: Literal["relu", "silu"] = Field(
        "relu", description="activation of neck and heads; a backbone has its own"
    )
    image_size: int = Field(
        320,
        ge=64,
        le=4096,
        description="side of the square input, pixels; divisible by 64",
    )
    norm: Literal["batch", "group"] = Field(
        "batch",
        description="norms of the network; group makes a step independent of how a batch is split",
    )
    anchor_base: float = Field(
        AnchorShapes.base,
        description="side of the square anchor of scale 1 on stride 8, pixels of the input; "
        "it doubles from level to level",
    )
    anchor_scales: tuple[float, ...] = Field(
        AnchorShapes.scales, description="sizes of the anchors of a cell, as multiples of the base"
    )
    anchor_ratios: tuple[float, ...] = Field(
        AnchorShapes.ratios,
        description="width / height of the anchors of a cell; each scale has one anchor per ratio",
    )
    anchor_clamp: bool = Field(
        False, description="limit the sides of anchors to that of the input, as in the paper"
    )
    init: str | None = Field(
        None,
        description="weights to start from: imagenet or coco, which are published for the "
        "backbone; a .pth or .safetensors file or http(s) URL; models:/NAME@ALIAS; or the folder "
        "of a run or checkpoint; unset: random weights",
    )
    init_sha256: str | None = Field(
        None,
        pattern="^[0-9a-fA-F]{64}$",
        description="sha256 of the file in model.init, 64 hexadecimal digits; required for a URL",
    )
    freeze_stages: int | None = Field(
        None,
        ge=0,
        description="number of first stages of the backbone to freeze; 1 is the stem; unset: 0, or "
        "two fifths of them with init, batch norms and fewer than 1000 training images",
    )
    freeze_norm: bool = Field(
        False,
        description="freeze statistics, scale and shift of the backbone's batch norms",
    )

    def network(self) -> dict[str, Any]:
        """Return the arguments of `build_detector`, except the number of classes."""
        return {
            "backbone": self.backbone,
            "neck": self.neck,
            "neck_variant": self.neck_variant,
            "image_size": self.image_size,
            "norm": self.norm,
            "anchor_base": self.anchor_base,
            "anchor_scales": self.anchor_scales,
            "anchor_ratios": self.anchor_ratios,
            "anchor_clamp": self.anchor_clamp,
            "strides": self.strides,
            "head": self.head,
            "activation": self.activation,
        }

    def recorded(self) -> dict[str, Any]:
        """Return the section; without ``init``, unset ``freeze_stages`` are 0."""
        tree = self.model_dump(mode="json")
        return tree if self.init else {**tree, "freeze_stages": self.freeze_stages or 0}

    @property
    def anchor_shapes(self) -> AnchorShapes:
        """Return the shapes of the anchors of a cell."""
        return AnchorShapes(
            self.anchor_base,
            self.anchor_scales,
            self.anchor_ratios,
            self.anchor_clamp,
            self.strides,
        )

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        check_backbone(value)
        return value

    @field_validator("neck")
    @classmethod
    def _known_neck(cls, value: str) -> str:
        return one_of(value, NECK_NAMES)

    @field_validator("image_size")
    @classmethod
    def _divisible(cls, value: int) -> int:
        if value % 64:
            low = value // 64 * 64
            raise ValueError(
                f"{value} is not divisible by 64; the nearest are {low} and {low + 64}"
            )
        return value

    @field_validator("strides")
    @classmethod
    def _strides_double(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        check_strides("the strides", value)
        return value

    @field_validator("anchor_base")
    @classmethod
    def _base_in_bounds(cls, value: float) -> float:
        check_base("the base", value)
        return value

    @field_validator("anchor_scales", "anchor_ratios")
    @classmethod
    def _factors_in_bounds(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        check_factors("the list", value)
        return value

    @model_validator(mode="after")
    def _anchors_are_few(self) -> ModelConfig:
        check_per_cell(self.anchor_scales, self.anchor_ratios)
        return self

    @model_validator(mode="after")
    def _weights_are_published(self) -> ModelConfig:
        if self.init in PUBLISHED:
            check_published(self.init, self.backbone)
            if self.init_sha256:
                raise ValueError(f"init_sha256 is for a file or URL; that of {self.init} is known")
        return self

    @model_validator(mode="after")
    def _hash_of_url(self) -> ModelConfig:
        if (self.init or "").startswith(("http://", "https://")) and not self.init_sha256:
            raise ValueError("init is a URL: give init_sha256, the sha256 of the file")
        return self

    @model_validator(mode="after")
    def _norm_fits(self) -> ModelConfig:
        if self.norm == "group" and self.backbone.startswith(TIMM_PREFIX):
            raise ValueError(
                f"norm is group, but {self.backbone} has its own norms; set norm to batch"
            )
        return self

    @model_validator(mode="after")
    def _stages_exist(self) -> ModelConfig:
        if self.freeze_stages:
            from model.backbones import count_stages  # imports torch

            stages = count_stages(self.backbone)
            if self.freeze_stages > stages:
                raise ValueError(
                    f"freeze_stages is {self.freeze_stages}; {self.backbone} has {stages} stages; "
                    f"give at most {stages}"
                )
        return self


def _loss_option(name: str) -> Any:
    """Return the field of an option of the loss."""
    option = LossOptions.declared()[name]
    description, default = option.description, option.default
    if option.choices:
        description += f": {', '.join(option.choices)}"
    if name in FOLLOWING_OPTIONS:
        own = (f"{loss[name]} ({who})" for who, loss in ASSIGNER_LOSSES.items() if name in loss)
        description += f"; unset: {', '.join(own)}, else {default}"
        default = None
    return Field(default, description=description, **option.bounds)


def _assign_option(name: str) -> Any:
    """Return the field of an option, for all assigners that have it.

    If their defaults differ, the field is unset, and each assigner takes its own default. So is one
    that runs of before were trained without, which are resumed with the value that they had.
    """
    declared = {
        assigner: options.declared()[name]
        for assigner, options in ASSIGNER_OPTIONS.items()
        if name in options.declared()
    }
    owners: dict[str, list[str]] = {}
    for assigner, option in declared.items():
        owners.setdefault(option.description, []).append(assigner)
    meanings = [f"{', '.join(names)}: {meaning}" for meaning, names in owners.items()]
    defaults = [option.default for option in declared.values()]
    unset = len(set(defaults)) > 1 or name in former_assigner_options()
    if unset:
        own = ", ".join(f"{_text(option.default)} ({name})" for name, option in declared.items())
        meanings.append(f"unset: {own}")
    return Field(None if unset else defaults[0], description="; ".join(meanings), **option.bounds)


def _text(value: Any) -> str:
    """Return a default, rounded, for a description."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class AssignConfig(Section):
    """Which anchors learn what. Flat over all assigners: fields the chosen one lacks are unused."""

    name: str = Field(
        "mutual_guidance", description=f"assigner: {', '.join(sorted(ASSIGNER_OPTIONS))}"
    )
    sigma: float = _assign_option("sigma")
    localize_to_classify: bool = _assign_option("localize_to_classify")
    classify_to_localize: bool = _assign_option("classify_to_localize")
    pos_threshold: float = _assign_option("pos_threshold")
    ignore_threshold: float = _assign_option("ignore_threshold")
    topk: int | None = _assign_option("topk")
    candidates: int = _assign_option("candidates")
    radius: float = _assign_option("radius")
    iou_weight: float = _assign_option("iou_weight")
    iou_targets: bool | None = _assign_option("iou_targets")
    alpha: float = _assign_option("alpha")
    beta: float = _assign_option("beta")
    static_fraction: float | None = _assign_option("static_fraction")
    min_positives: int = _assign_option("min_positives")
    spare_iou: float = _assign_option("spare_iou")
    centre_radius: float = _assign_option("centre_radius")
    scaled_targets: bool = _assign_option("scaled_targets")

    def recorded(self) -> dict[str, Any]:
        """Return the section with the defaults of options that runs of before lack, where unset."""
        own = ASSIGNER_OPTIONS[self.name].declared()
        added = {
            name: own[name].default
            for name in former_assigner_options(self.name)
            if getattr(self, name) is None
        }
        return {**self.model_dump(mode="json"), **added}

    @field_validator("name")
    @classmethod
    def _known_assigner(cls, value: str) -> str:
        return one_of(value, ASSIGNER_OPTIONS)

    @model_validator(mode="after")
    def _ordered(self) -> AssignConfig:
        check_threshold_order(self.pos_threshold, self.ignore_threshold)
        return self


class LossConfig(Section):
    """Losses and their weights. Flat over all losses: fields the chosen ones lack are unused.

    Fields that are unset follow the assigner.
    """

    classification: str | None = _loss_option("classification")
    alpha: float | None = _loss_option("alpha")
    gamma: float | None = _loss_option("gamma")
    poly: float | None = _loss_option("poly")
    classification_weight: float | None = _loss_option("classification_weight")
    normaliser: str | None = _loss_option("normaliser")
    localization: str = _loss_option("localization")
    localization_weight: float = _loss_option("localization_weight")
    overlap: str | None = _loss_option("overlap")
    overlap_weight: float = _loss_option("overlap_weight")
    class_weights: dict[str, Annotated[float, Field(gt=0.0)]] = Field(
        {},
        description="factors of the class loss of anchors that learn an object of a class, by "
        "class name; 1 for the others",
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        # YAML reads the unquoted names 1 and no as a number and false.
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):
                    raise ValueError(f"the class name {name!r} is not text; put it in quotes")
        return value

    def options(self, assigner: str) -> dict[str, Any]:
        """Return the options of `DetectionLoss`, with those of the assigner where unset."""
        following = {
            name: loss_default(name, assigner)
            for name in FOLLOWING_OPTIONS
            if getattr(self, name) is None
        }
        return {**self.model_dump(), **following}

    @field_validator("classification", "normaliser", "localization", "overlap")
    @classmethod
    def _known_loss(cls, value: str | None, info: ValidationInfo) -> str | None:
        assert info.field_name is not None
        if value is None:
            return None
        return one_of(value, LossOptions.declared()[info.field_name].choices)
