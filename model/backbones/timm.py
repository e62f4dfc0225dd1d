"""Any convolutional network of the timm library that has a map at stride 8.

timm is optional and imported only for a name with its prefix. It needs a torchvision that matches
torch's build, so the import can fail in several ways.
"""

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..names import TIMM_PREFIX
from .base import Backbone

STRIDES = (8, 16, 32)


def check_timm(name: str) -> Any:
    """Return the timm package. Raise ValueError if it cannot be imported or has no such network."""
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"backbone '{TIMM_PREFIX}{name}' needs timm, which cannot be imported ({reason}); "
            "install timm and the torchvision of this torch build, or choose another backbone"
        ) from None
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"nearest: {', '.join(near)}" if near else "see timm.list_models()"
        raise ValueError(f"timm has no network {name!r}; {hint}")
    return timm


class Timm(Backbone):
    """A network of timm with random weights. It is one stage."""

    neck_channels = 256

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            self.body = check_timm(name).create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
            raise ValueError(f"{TIMM_PREFIX}{name} cannot return feature maps: {error}") from None
        strides = list(self.body.feature_info.reduction())
        if STRIDES[0] not in strides:
            raise ValueError(
                f"{TIMM_PREFIX}{name} has maps at strides {strides}, none at stride 8; "
                "choose another network"
            )
        self._maps = [strides.index(stride) for stride in STRIDES if stride in strides]
        widths = self.body.feature_info.channels()
        self.channels = tuple(widths[index] for index in self._maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images (B, 3, H, W) at those of strides 8, 16 and 32 that exist."""
        maps = self.body(images)
        return [maps[index] for index in self._maps]

    def stage_layers(self) -> list[Sequence[nn.Module]]:
        """Return the whole network as one stage."""
        return [[self.body]]

    def own_name(self, published: str) -> str:
        """Return the name of a published tensor.

        To pick feature maps, timm joins the names of a container and its item, as in `stages_0`.
        """
        first, _, rest = published.partition(".")
        item = rest.partition(".")[0]
        if hasattr(self.body, f"{first}_{item}"):
            return f"body.{first}_{rest}"
        return f"body.{published}"
