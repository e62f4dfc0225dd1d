"""The FSSD pyramid: one fused map at stride 8, and further levels grown from it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import ConvNormAct, upsample_to


class FusedPyramid(nn.Module):
    """Maps reduced by 1x1, upsampled to stride 8, concatenated, 3x3 fused; stride-2 convs below."""

    def __init__(self, inputs: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        # Half the width per map: the fusing convolution is the neck's most expensive layer.
        reduced = channels // 2
        self.reduce = nn.ModuleList(ConvNormAct(width, reduced, kernel=1) for width in inputs)
        self.fuse = ConvNormAct(reduced * len(inputs), channels)
        self.extra = nn.ModuleList(
            ConvNormAct(channels, channels, stride=2) for _ in range(levels - 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, F_i, h_i, w_i), finest first -> one (B, channels, h, w) per level."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        same_size = [reduced[0], *(upsample_to(x, reduced[0]) for x in reduced[1:])]
        pyramid = [self.fuse(torch.cat(same_size, dim=1))]
        for extra in self.extra:
            pyramid.append(extra(pyramid[-1]))
        return pyramid
