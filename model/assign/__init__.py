"""Assigners by name: which anchor learns which object, separately for each task."""

from dataclasses import fields
from typing import Any

from torch import Tensor

from .max_iou import MaxIoU
from .mutual_guidance import MutualGuidance
from .types import BACKGROUND, IGNORED, Assigner, Assignment

ASSIGNERS: dict[str, type[Any]] = {"max_iou": MaxIoU, "mutual_guidance": MutualGuidance}

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
    return tuple(field.name for field in fields(ASSIGNERS[name]))


def build_assigner(name: str, *, anchor_strides: Tensor | None = None, **options: Any) -> Assigner:
    """The assigner of this name.

    Options that belong to another assigner are dropped, so that one flat section of settings can
    serve them all; options that belong to none raise ValueError. `anchor_strides` (A,) goes to
    those that need each anchor's level.
    """
    own = assigner_options(name)
    known = {option for other in ASSIGNERS for option in assigner_options(other)}
    for option in options:
        if option not in known:
            raise ValueError(
                f"no assigner has an option {option!r}; {name} takes: {', '.join(own)}"
            )
    chosen = {**options, "anchor_strides": anchor_strides}
    return ASSIGNERS[name](**{key: value for key, value in chosen.items() if key in own})
