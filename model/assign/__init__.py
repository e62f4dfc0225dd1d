"""Assigners by name: which anchor learns which object, separately for each task."""

from dataclasses import fields
from typing import Any

from torch import Tensor

from .atss import ATSS
from .base import BACKGROUND, IGNORED, Assigner, Assignment
from .max_iou import MaxIoU
from .mutual_guidance import MutualGuidance
from .mutual_guidance_soft import MutualGuidanceSoft
from .sim_ota import SimOTA
from .task_aligned import TaskAligned

ASSIGNERS: dict[str, type[Any]] = {
    "atss": ATSS,
    "max_iou": MaxIoU,
    "mutual_guidance": MutualGuidance,
    "mutual_guidance_soft": MutualGuidanceSoft,
    "sim_ota": SimOTA,
    "task_aligned": TaskAligned,
}

__all__ = [
    "ASSIGNERS",
    "BACKGROUND",
    "IGNORED",
    "Assigner",
    "Assignment",
    "assigner_options",
    "build_assigner",
]


def assigner_options(name: str) -> tuple[str, ...]:
    """Names of the options that an assigner takes. Raises ValueError on an unknown name."""
    if name not in ASSIGNERS:
        raise ValueError(
            f"assigner {name!r} does not exist; choose from: {', '.join(sorted(ASSIGNERS))}"
        )
    own = (field.name for field in fields(ASSIGNERS[name]) if field.init)
    return tuple(option for option in own if option != "anchor_strides")


def build_assigner(name: str, *, anchor_strides: Tensor | None = None, **options: Any) -> Assigner:
    """The assigner of this name.

    Options that belong to another assigner are dropped, so that one flat section of settings can
    serve them all, and so are those of None, for which the assigner has its own default; options
    that belong to none raise ValueError. `anchor_strides` (A,) goes to
    those that need each anchor's level.
    """
    own = assigner_options(name)
    known = {option for other in ASSIGNERS for option in assigner_options(other)}
    for option in options:
        if option not in known:
            raise ValueError(
                f"no assigner has an option {option!r}; {name} takes: {', '.join(own)}"
            )
    chosen = {key: value for key, value in options.items() if key in own and value is not None}
    if any(field.name == "anchor_strides" for field in fields(ASSIGNERS[name])):
        chosen["anchor_strides"] = anchor_strides
    return ASSIGNERS[name](**chosen)
