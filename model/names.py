"""Names that recipes choose from, and the checks of those names.

Imports the standard library only, so that reading a configuration does not import torch.
"""

from collections.abc import Iterable

BACKBONE_NAMES = (
    "slim",
    "efficientnet_lite0",
    "mobilenetv2",
    "vgg16",
    "resnet18",
    "resnet34",
    "resnet50",
)
NECK_NAMES = ("fssd", "retinanet", "rfb", "pafpn")
NECK_VARIANTS = ("compact", "published")
HEAD_NAMES = ("plain", "decoupled")
ACTIVATIONS = ("relu", "silu")
TIMM_PREFIX = "timm:"


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError listing the known names if `name` is not one of them."""
    known = tuple(known)
    if name not in known:
        raise ValueError(f"{kind} {name!r} does not exist; choose from: {', '.join(known)}")


def check_backbone(name: str) -> None:
    """Raise ValueError listing the backbones if there is no backbone of this name.

    The names of timm are looked up in timm, which is imported for that.
    """
    if name.startswith(TIMM_PREFIX):
        from .backbones.timm import check_timm

        check_timm(name.removeprefix(TIMM_PREFIX))
    elif name not in BACKBONE_NAMES:
        raise ValueError(
            f"backbone {name!r} does not exist; choose from: {', '.join(sorted(BACKBONE_NAMES))}, "
            f"or {TIMM_PREFIX}NAME where timm is installed"
        )
