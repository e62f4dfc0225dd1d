"""FSSD (Li & Zhou, 2017): one fused map at stride 8, and further levels made from it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import ConvNormAct, upsample_to


class Fusion(nn.Module):
    """Maps reduced by 1x1, upsampled to stride 8, concatenated, 3x3 fused.

    Compact: half the width per map, since the fusing convolution is the neck's most expensive
    layer. Published: the whole width per map.
    """

    def __init__(self, inputs: Sequence[int], channels: int, published: bool = False) -> None:
        super().__init__()
        reduced = channels if published else channels // 2
        self.reduce = nn.ModuleList(
            ConvNormAct(width, reduced, kernel=1, bias=published) for width in inputs
        )
        self.fuse = ConvNormAct(reduced * len(inputs), channels, bias=published)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, F_i, h_i, w_i), finest first, to (B, channels, h_0, w_0)."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        same_size = [reduced[0], *(upsample_to(x, reduced[0]) for x in reduced[1:])]
        return self.fuse(torch.cat(same_size, dim=1))


class FSSDNeck(nn.Module):
    """The fused map, and one 3x3 convolution of stride 2 for each further level.

    `fusion` replaces `Fusion`, which makes one map at stride 8 of the backbone's maps. In the
    published variant all convolutions have a bias before their norm.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        levels: int,
        fusion: nn.Module | None = None,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.widths = (channels,) * levels
        self.fusion = Fusion(inputs, channels, published) if fusion is None else fusion
        self.extra = nn.ModuleList(
            ConvNormAct(channels, channels, stride=2, bias=published) for _ in range(levels - 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one (B, channels, h, w) per level from maps (B, F_i, h_i, w_i), finest first."""
        pyramid = [self.fusion(maps)]
        for extra in self.extra:
            pyramid.append(extra(pyramid[-1]))
        return pyramid
