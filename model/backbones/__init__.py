"""Feature extractors by name.

A backbone maps images (B, 3, H, W) to a list of feature maps, finest first, the first of them at
stride 8. It says its maps' widths in `channels` and the neck width that suits it in
`neck_channels`.
"""

from collections.abc import Callable

from .base import Backbone
from .resnet import resnet18
from .slim import Slim

BACKBONES: dict[str, Callable[[], Backbone]] = {"slim": Slim, "resnet18": resnet18}

__all__ = ["BACKBONES", "Backbone"]
