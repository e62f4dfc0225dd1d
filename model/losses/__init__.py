"""Loss functions by name, all element by element and in at least float32."""

from .balanced_l1 import balanced_l1
from .focal import focal

CLASSIFICATION_LOSSES = ("focal",)
LOCALIZATION_LOSSES = ("balanced_l1",)

__all__ = ["CLASSIFICATION_LOSSES", "LOCALIZATION_LOSSES", "balanced_l1", "focal"]
