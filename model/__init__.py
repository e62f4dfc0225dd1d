"""What is learned: an anchor-based detector, its assigners, losses and post-processing.

Depends on torch alone and imports only relatively, so that the folder can travel with a registered
model under any package name. Boxes are float32 xyxy in pixels of the network's input. Shape
letters: B images, A anchors, M objects (padded), C classes, K candidates, D detections.
"""

from .backbones import BACKBONES
from .detector import Detector, Predictions, build_detector
from .necks import NECKS

__all__ = ["BACKBONES", "NECKS", "Detector", "Predictions", "build_detector"]
