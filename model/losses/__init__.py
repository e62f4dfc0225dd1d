"""Loss functions by name, all without reduction and in at least float32."""

from collections.abc import Callable

from torch import Tensor

from .balanced_l1 import balanced_l1
from .focal import focal
from .overlap import giou, siou
from .quality_focal import quality_focal
from .smooth_l1 import smooth_l1

CLASSIFICATION_LOSSES: dict[str, tuple[float, float]] = {
    "focal": (0.25, 1.0),
    "quality_focal": (0.75, 2.0),
}
"""Alpha and gamma that the authors of Mutual Guidance use with each."""
LOCALIZATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "balanced_l1": balanced_l1,
    "smooth_l1": smooth_l1,
}
"""Of encoded offsets."""
OVERLAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "none": None,
    "giou": giou,
    "siou": siou,
}
"""Of decoded boxes."""

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
