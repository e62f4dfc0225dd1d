"""Assigners by name: which anchor learns which object, separately for each task.

Plain loop versions of all of them, to read first, are in `loops`.
"""

from dataclasses import fields
from typing import Any, Unpack

from torch import Tensor

from ..anchor_shapes import AnchorShapes
from ..options import ASSIGNER_OPTIONS, AssignerOptions, assigner_options
from .atss import ATSS
from .base import BACKGROUND, IGNORED, Assigner, Assignment, StaticPart
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
    "StaticPart",
    "build_assigner",
]


def build_assigner(
    name: str,
    *,
    anchor_strides: Tensor | None = None,
    anchors_per_cell: int = AnchorShapes().per_cell,
    **options: Unpack[AssignerOptions],
) -> Assigner:
    """Build the assigner of this name.

    Options of other assigners are ignored, so that one flat section of settings serves all of
    them; an option of None takes the assigner's default. `anchor_strides` (A,), the stride of each
    anchor's level, is required by `atss`, `sim_ota`, the first part of a training with
    `task_aligned`, and `mutual_guidance_soft` with `centre_radius`; `atss` and `task_aligned` also
    need the number of anchors per cell, unless it is the paper's. Raise ValueError on an unknown
    assigner, an option that no assigner has, and a value out of bounds.
    """
    own = assigner_options(name)
    known = {option for other in ASSIGNER_OPTIONS for option in assigner_options(other)}
    for option in options:
        if option not in known:
            raise ValueError(
                f"no assigner has an option {option!r}; {name} takes: {', '.join(own)}"
            )
    chosen = {key: value for key, value in options.items() if key in own and value is not None}
    about_anchors = {"anchor_strides": anchor_strides, "anchors_per_cell": anchors_per_cell}
    taken = {field.name for field in fields(ASSIGNERS[name])}
    chosen |= {key: value for key, value in about_anchors.items() if key in taken}
    return ASSIGNERS[name](**chosen)
