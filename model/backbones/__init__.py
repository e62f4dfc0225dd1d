"""Feature extractors by name.

A backbone maps images (B, 3, H, W) to a list of feature maps, finest first, the first of them at
stride 8. It says its maps' widths in `channels` and the neck width that suits it in
`neck_channels`.
"""

from collections.abc import Callable

from .base import Backbone
from .resnet import resnet18, resnet34, resnet50
from .slim import Slim
from .timm import PREFIX, Timm, check_timm
from .vgg import VGG16

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "slim": Slim,
    "vgg16": VGG16,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}

__all__ = ["BACKBONES", "Backbone", "build_backbone", "check_backbone"]


def build_backbone(name: str) -> Backbone:
    """The backbone of this name, with random weights. Raises ValueError as `check_backbone`."""
    check_backbone(name)
    return Timm(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else BACKBONES[name]()


def check_backbone(name: str) -> None:
    """Raises ValueError saying what exists if there is no such backbone here."""
    if name.startswith(PREFIX):
        check_timm(name.removeprefix(PREFIX))
    elif name not in BACKBONES:
        known = ", ".join(sorted(BACKBONES))
        raise ValueError(
            f"backbone {name!r} does not exist; choose from: {known}, "
            f"or {PREFIX}NAME where timm is installed"
        )
