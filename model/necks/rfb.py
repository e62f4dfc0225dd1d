"""RFBNet (Liu et al., 2018): receptive fields of several sizes and eccentricities in a layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import ConvNormAct
from .fssd import Fusion

# Per branch: the kernels before the dilated 3x3, and its dilation. Larger kernels go with a larger
# dilation, as in the receptive fields of the visual cortex.
BRANCHES: tuple[tuple[tuple[tuple[int, int], ...], int], ...] = (
    ((), 1),
    (((3, 1),), 3),
    (((1, 3),), 3),
    (((3, 3),), 5),
    (((1, 5), (5, 1)), 7),
)


class ReceptiveFieldBlock(nn.Module):
    """Branches of dilation 1, 3, 3, 5, 7, concatenated, mixed by 1x1 and added to a shortcut."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        width = max(1, channels // 4)
        self.branches = nn.ModuleList(
            _branch(channels, width, kernels, dilation, stride) for kernels, dilation in BRANCHES
        )
        self.mix = ConvNormAct(width * len(BRANCHES), channels, kernel=1, activation=False)
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else ConvNormAct(channels, channels, kernel=1, stride=stride, activation=False)
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F, h, w) to (B, F, h / stride, w / stride)."""
        mixed = self.mix(torch.cat([branch(x) for branch in self.branches], dim=1))
        activated: Tensor = self.activation(mixed + self.shortcut(x))
        return activated


class RFBNeck(nn.Module):
    """The fused map at stride 8 and all further levels, through receptive-field blocks."""

    def __init__(self, inputs: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.widths = (channels,) * levels
        self.fusion = Fusion(inputs, channels)
        self.blocks = nn.ModuleList(
            ReceptiveFieldBlock(channels, stride=1 if level == 0 else 2) for level in range(levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one (B, channels, h, w) per level from maps (B, F_i, h_i, w_i), finest first."""
        x = self.fusion(maps)
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        return levels


def _branch(
    channels: int, width: int, kernels: Sequence[tuple[int, int]], dilation: int, stride: int
) -> nn.Sequential:
    """Build 1x1 to a quarter of the width, the kernels, and a dilated 3x3 without activation."""
    return nn.Sequential(
        ConvNormAct(channels, width, kernel=1),
        *(ConvNormAct(width, width, kernel) for kernel in kernels),
        ConvNormAct(width, width, stride=stride, dilation=dilation, activation=False),
    )
