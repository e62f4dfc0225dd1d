"""The interface of backbones to necks, and how parts of a backbone are frozen."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)


class Backbone(nn.Module, ABC):
    """Maps (B, 3, H, W) to feature maps of widths `channels`, finest (stride 8) first."""

    channels: tuple[int, ...]
    neck_channels: int

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, channels[i], H / stride_i, W / stride_i) of images (B, 3, H, W)."""

    @abstractmethod
    def stage_layers(self) -> list[Sequence[nn.Module]]:
        """Return all layers that learn, in the groups that `freeze` counts, first to last."""

    def own_name(self, published: str) -> str:
        """Return the name in this module of a tensor of the backbone's published checkpoints."""
        return published

    def freeze(self, stages: int = 0, norm: bool = False) -> None:
        """Freeze the first `stages` and, with `norm`, all batch norms of the backbone.

        Frozen layers get no gradient, and frozen batch norms use and keep their running statistics
        in training. Raise ValueError if there are fewer stages.
        """
        groups = self.stage_layers()
        if not 0 <= stages <= len(groups):
            raise ValueError(f"cannot freeze {stages} stages; the backbone has {len(groups)}")
        frozen = [layer for group in groups[:stages] for layer in group]
        if norm:
            frozen += [layer for layer in self.modules() if isinstance(layer, NORMS)]
        for layer in frozen:
            layer.requires_grad_(False)
        self._frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode as in torch, except that frozen layers stay in eval mode."""
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self
