"""What every backbone offers to the necks, and how a part of it is kept from learning."""

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
        self._held: list[nn.Module] = []

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> one (B, channels[i], H / stride_i, W / stride_i) per map."""

    @abstractmethod
    def stage_layers(self) -> list[Sequence[nn.Module]]:
        """All layers that learn, in the groups that `freeze` counts, first to last."""

    def own_name(self, published: str) -> str:
        """The name in this module of a tensor in the checkpoints that others publish for it."""
        return published

    def freeze(self, stages: int = 0, norm: bool = False) -> None:
        """Keep the first `stages` as they are; with `norm`, every batch norm of the backbone too.

        What is frozen gets no gradient, and its batch norms use and keep their running statistics
        in training. Raises ValueError where there are fewer stages.
        """
        groups = self.stage_layers()
        if not 0 <= stages <= len(groups):
            raise ValueError(f"{stages} stages cannot be frozen; the backbone has {len(groups)}")
        frozen = [layer for group in groups[:stages] for layer in group]
        if norm:
            frozen += [layer for layer in self.modules() if isinstance(layer, NORMS)]
        for layer in frozen:
            layer.requires_grad_(False)
        self._held = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but frozen layers stay in eval mode."""
        super().train(mode)
        for layer in self._held:
            layer.eval()
        return self
