"""What is learned: an anchor-based detector, its assigners, losses and post-processing.

Depends on torch alone and imports only relatively, so that a registered model can carry a copy of
this package under another name. Importing the package itself does not import torch: the names
below are loaded when they are first used.

Boxes are float32 xyxy in pixels of the network's input. Shape letters: B images, A anchors,
M objects (padded), C classes, K candidates, D detections.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import BACKBONES
    from .detector import Detector, Predictions, build_detector
    from .necks import NECKS

__all__ = ["BACKBONES", "NECKS", "Detector", "Predictions", "build_detector"]

_MODULES = {
    "BACKBONES": ".backbones",
    "NECKS": ".necks",
    "Detector": ".detector",
    "Predictions": ".detector",
    "build_detector": ".detector",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
