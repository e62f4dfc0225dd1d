"""Feature extractors by name.

A backbone maps images (B, 3, H, W) to a list of feature maps, finest first, starting at stride 8.
Its `channels` are the widths of the maps, its `neck_channels` the neck width that suits it.
"""

from collections.abc import Callable

import torch

from ..names import TIMM_PREFIX, check_backbone
from .base import Backbone
from .efficientnet_lite import EfficientNetLite0
from .mobilenetv2 import MobileNetV2
from .resnet import resnet18, resnet34, resnet50
from .slim import Slim
from .timm import Timm
from .vgg import VGG16

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "slim": Slim,
    "efficientnet_lite0": EfficientNetLite0,
    "mobilenetv2": MobileNetV2,
    "vgg16": VGG16,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}

__all__ = ["BACKBONES", "Backbone", "build_backbone", "count_stages"]


def build_backbone(name: str) -> Backbone:
    """Build the backbone of this name with random weights. Raise ValueError if it is unknown."""
    check_backbone(name)
    if name.startswith(TIMM_PREFIX):
        return Timm(name.removeprefix(TIMM_PREFIX))
    return BACKBONES[name]()


def count_stages(name: str) -> int:
    """Return how many stages of a backbone can be frozen."""
    with torch.device("meta"):  # shapes without values: takes no time
        return len(build_backbone(name).stage_layers())
