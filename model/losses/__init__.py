"""Loss functions by name. None of them reduces; all work in at least float32."""

from collections.abc import Callable

from torch import Tensor

from ..options import CLASSIFICATION_LOSSES
from .balanced_l1 import balanced_l1
from .focal import focal
from .iou import giou, siou
from .quality_focal import quality_focal
from .smooth_l1 import smooth_l1

LOCALIZATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "balanced_l1": balanced_l1,
    "smooth_l1": smooth_l1,
}
"""Losses of encoded offsets, (..., 4), (..., 4) -> (..., 4)."""
OVERLAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "none": None,
    "giou": giou,
    "siou": siou,
}
"""Losses of decoded boxes, (..., 4), (..., 4) -> (...)."""

__all__ = [
    "CLASSIFICATION_LOSSES",
    "LOCALIZATION_LOSSES",
    "OVERLAP_LOSSES",
    "balanced_l1",
    "focal",
    "giou",
    "quality_focal",
    "siou",
    "smooth_l1",
]
