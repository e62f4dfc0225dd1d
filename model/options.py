"""Options of the assigners and of the loss, each declared once: default, bounds, meaning.

Assigners and the loss take their defaults and checks from these classes; the configuration makes
its fields from them. Imports the standard library only, so that `--help` does not import torch.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypedDict

from .names import check_name

_COMPARISONS = {
    "gt": (operator.gt, "above"),
    "ge": (operator.ge, "at least"),
    "lt": (operator.lt, "below"),
    "le": (operator.le, "at most"),
}


class Option(NamedTuple):
    """The declaration of one option."""

    default: Any
    description: str
    bounds: Mapping[str, Any]
    """Limits by comparison: gt, ge, lt, le."""
    choices: tuple[str, ...]
    """Allowed names; empty for numbers and switches."""
    former: Any = None
    """Value that runs recorded without this option were trained with; None if it is the default."""

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError if the value of the option `name` is out of bounds or unknown."""
        if value is None and self.default is None:
            return
        if self.choices:
            check_name(name, value, self.choices)
        for comparison, limit in self.bounds.items():
            holds, words = _COMPARISONS[comparison]
            if not holds(value, limit):  # NaN fails every comparison
                raise ValueError(f"{name} is {value}; it must be {words} {limit:g}")


@dataclass(frozen=True)
class Options:
    """Base of a group of options: checks all values when it is constructed."""

    @classmethod
    def declared(cls) -> dict[str, Option]:
        """Return the declarations by name."""
        return {f.name: f.metadata["option"] for f in fields(cls) if "option" in f.metadata}

    def __post_init__(self) -> None:
        for name, option in self.declared().items():
            option.check(name, getattr(self, name))


def _option(
    default: Any,
    description: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] = (),
    former: Any = None,
) -> Any:
    """Return the dataclass field of one option."""
    limits = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    bounds = {name: limit for name, limit in limits.items() if limit is not None}
    option = Option(default, description, bounds, choices, former)
    return field(default=default, metadata={"option": option})


# ---------------------------------------------------------------------------------- assigners


@dataclass(frozen=True)
class ThresholdOptions(Options):
    """IoU thresholds of assigners that count an object's anchors by IoU."""

    pos_threshold: float = _option(
        0.5, "anchor IoU from which an anchor counts as positive", gt=0.0, lt=1.0
    )
    ignore_threshold: float = _option(
        0.4, "anchor IoU from which an anchor counts as ignored", gt=0.0, lt=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold_order(self.pos_threshold, self.ignore_threshold)


@dataclass(frozen=True)
class GuidanceOptions(Options):
    """How each task guides the other in Mutual Guidance."""

    sigma: float = _option(
        2.0, "how little scores amplify the IoU; higher is less", gt=1.0, le=100.0
    )
    localize_to_classify: bool = _option(
        True, "regressed boxes choose what learns to classify; false: static anchors do"
    )
    classify_to_localize: bool = _option(
        True, "class scores choose what learns to regress; false: static anchors do"
    )
    static_fraction: float = _option(
        0.0,
        "first part of the training in which static anchors choose for both tasks, as a fraction "
        "of all steps",
        ge=0.0,
        le=1.0,
    )

    min_positives: int = _option(
        0,
        "least number of positives of an object in each task, if that many anchors overlap it",
        ge=0,
        le=1000,
    )
    spare_iou: float = _option(
        0.0,
        "background anchors whose predicted box has this IoU with an object are ignored; 0: none",
        ge=0.0,
        le=1.0,
    )

    def guidance(self, progress: float) -> tuple[bool, bool]:
        """Return whether classification and localization are guided at this progress."""
        guided = progress >= self.static_fraction
        return guided and self.localize_to_classify, guided and self.classify_to_localize


@dataclass(frozen=True)
class MaxIoUOptions(ThresholdOptions):
    """Options of `max_iou`."""


@dataclass(frozen=True)
class MutualGuidanceOptions(GuidanceOptions, ThresholdOptions):
    """Options of `mutual_guidance`."""


@dataclass(frozen=True)
class MutualGuidanceSoftOptions(GuidanceOptions):
    """Options of `mutual_guidance_soft`."""

    topk: int = _option(
        15,
        "anchors of an object whose qualities add up to its number of positives",
        ge=1,
        le=1000,
    )
    centre_radius: float = _option(
        0.0,
        "an anchor is only matched with objects that contain its centre, where each object reaches "
        "at least this many strides from its own centre along both axes; 0: no limit",
        ge=0.0,
        le=100.0,
    )
    scaled_targets: bool = _option(
        False,
        "class targets and box weights of an object are score x IoU^6 of its positives, scaled to "
        "the highest IoU; false: their qualities",
    )


@dataclass(frozen=True)
class ATSSOptions(Options):
    """Options of `atss`."""

    candidates: int = _option(9, "nearest cells per level and object", ge=1, le=1000)


@dataclass(frozen=True)
class SimOTAOptions(Options):
    """Options of `sim_ota`."""

    topk: int = _option(
        10,
        "anchors of an object whose qualities add up to its number of positives",
        ge=1,
        le=1000,
    )
    radius: float = _option(2.5, "half side of the centre region, in strides", gt=0.0, le=100.0)
    iou_weight: float = _option(
        3.0, "factor of -log(IoU) in the cost; the class cost has factor 1", gt=0.0, le=1000.0
    )
    iou_targets: bool = _option(
        True,
        "the class target of a positive is the IoU of its predicted box; false: 1",
        former=False,
    )


@dataclass(frozen=True)
class TaskAlignedOptions(Options):
    """Options of `task_aligned`."""

    topk: int = _option(13, "anchors of an object that become positive", ge=1, le=1000)
    alpha: float = _option(1.0, "exponent of the score", gt=0.0, le=100.0)
    beta: float = _option(6.0, "exponent of the IoU", gt=0.0, le=100.0)
    static_fraction: float = _option(
        1 / 3,
        "first part of the training in which ATSS assigns, as a fraction of all steps",
        ge=0.0,
        le=1.0,
        former=0.0,
    )


ASSIGNER_OPTIONS: dict[str, type[Options]] = {
    "atss": ATSSOptions,
    "max_iou": MaxIoUOptions,
    "mutual_guidance": MutualGuidanceOptions,
    "mutual_guidance_soft": MutualGuidanceSoftOptions,
    "sim_ota": SimOTAOptions,
    "task_aligned": TaskAlignedOptions,
}


class AssignerOptions(TypedDict, total=False):
    """Keyword arguments for the options of all assigners; None is the assigner's own default."""

    pos_threshold: float | None
    ignore_threshold: float | None
    sigma: float | None
    localize_to_classify: bool | None
    classify_to_localize: bool | None
    topk: int | None
    candidates: int | None
    radius: float | None
    iou_weight: float | None
    iou_targets: bool | None
    alpha: float | None
    beta: float | None
    static_fraction: float | None
    min_positives: int | None
    spare_iou: float | None
    centre_radius: float | None
    scaled_targets: bool | None


def assigner_options(name: str) -> tuple[str, ...]:
    """Return the names of an assigner's options. Raise ValueError on an unknown assigner."""
    check_name("assigner", name, sorted(ASSIGNER_OPTIONS))
    return tuple(ASSIGNER_OPTIONS[name].declared())


def former_assigner_options(assigner: str | None = None) -> dict[str, Any]:
    """Return the values of options that changed an assigner when they were added, by name.

    Of one assigner, or of all.
    """
    chosen = ASSIGNER_OPTIONS if assigner is None else (assigner,)
    return {
        name: option.former
        for owner in chosen
        for name, option in ASSIGNER_OPTIONS[owner].declared().items()
        if option.former is not None
    }


def check_threshold_order(pos_threshold: float, ignore_threshold: float) -> None:
    """Raise ValueError if the threshold for ignored anchors is above that for positive ones."""
    if ignore_threshold > pos_threshold:
        raise ValueError(
            f"ignore_threshold {ignore_threshold} is above pos_threshold {pos_threshold}; "
            "lower one or raise the other"
        )


# --------------------------------------------------------------------------------------- loss


class FocalDefaults(NamedTuple):
    """Alpha and gamma that the authors of Mutual Guidance use with a classification loss."""

    alpha: float
    gamma: float


CLASSIFICATION_LOSSES = {
    "focal": FocalDefaults(alpha=0.25, gamma=1.0),
    "quality_focal": FocalDefaults(alpha=0.75, gamma=2.0),
}
CLASSIFICATION_NORMALISERS = ("positives", "targets")
LOCALIZATION_LOSS_NAMES = ("balanced_l1", "smooth_l1")
OVERLAP_LOSS_NAMES = ("none", "giou", "siou")


def _defaults(name: str) -> str:
    """Return the defaults of alpha or gamma, for a description."""
    values = ((getattr(usual, name), loss) for loss, usual in CLASSIFICATION_LOSSES.items())
    return "unset: " + ", ".join(f"{value:g} ({loss})" for value, loss in values)


@dataclass(frozen=True)
class LossOptions(Options):
    """Options of `DetectionLoss`; those that the chosen losses lack are unused."""

    classification: str = _option(
        "focal", "loss of the class scores", choices=tuple(CLASSIFICATION_LOSSES)
    )
    alpha: float | None = _option(
        None,
        "focal: weight of positives; quality_focal: weight of negatives; " + _defaults("alpha"),
        ge=0.0,
        le=1.0,
    )
    gamma: float | None = _option(
        None, "exponent that down-weights easy scores; " + _defaults("gamma"), ge=0.0, le=10.0
    )
    poly: float = _option(1.0, "quality_focal: factor of the term (1 - p_t)^3", ge=0.0, former=1.0)
    classification_weight: float = _option(1.0, "factor of the class loss", ge=0.0)
    normaliser: str = _option(
        "positives",
        "divisor of the class loss: the number of positives, or the sum of their targets",
        choices=CLASSIFICATION_NORMALISERS,
        former="positives",
    )
    localization: str = _option(
        "balanced_l1", "loss of the encoded offsets", choices=LOCALIZATION_LOSS_NAMES
    )
    localization_weight: float = _option(1.0, "factor of the offset loss", ge=0.0)
    overlap: str = _option(
        "none", "additional loss of the decoded boxes", choices=OVERLAP_LOSS_NAMES
    )
    overlap_weight: float = _option(2.0, "factor of the overlap loss", ge=0.0)


def check_class_weights(weights: Mapping[str, float], classes: Sequence[str]) -> None:
    """Raise ValueError if a weight is for an unknown class, or is not positive."""
    for name, weight in weights.items():
        if name not in classes:
            known = ", ".join(sorted(classes))
            raise ValueError(f"class_weights: unknown class {name!r}; known: {known}")
        if not 0 < weight < math.inf:  # NaN fails every comparison
            raise ValueError(f"class_weights: {name!r} has the weight {weight}; give one above 0")


# Options of the loss with which the authors of an assigner train it, where they differ.
ASSIGNER_LOSSES: dict[str, dict[str, Any]] = {
    "mutual_guidance_soft": {
        "classification": "quality_focal",
        "classification_weight": 2.0,
        "overlap": "siou",
    },
    "sim_ota": {"classification": "quality_focal", "poly": 0.0},
    "task_aligned": {"classification": "quality_focal", "poly": 0.0, "normaliser": "targets"},
}
FOLLOWING_OPTIONS = tuple(
    option
    for option in LossOptions.declared()
    if any(option in loss for loss in ASSIGNER_LOSSES.values())
)


def former_loss_options() -> dict[str, Any]:
    """Return the values of options that changed a loss when they were added, by name."""
    return {
        name: option.former
        for name, option in LossOptions.declared().items()
        if option.former is not None
    }


def loss_default(option: str, assigner: str) -> Any:
    """Return the default of an option of the loss for an assigner."""
    default = LossOptions.declared()[option].default
    return ASSIGNER_LOSSES.get(assigner, {}).get(option, default)
