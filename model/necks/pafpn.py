"""PAFPN (Liu et al., 2018): the RetinaNet pyramid, refined once more from the bottom up."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import ConvNormAct, upsample_to
from .retinanet import RetinaNetNeck


class ContextFusion(nn.Module):
    """1x1 of each map and of the coarsest map's global average, concatenated at stride 8, fused.

    Every location thus sees the whole image from the first level on.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        reduced = channels // 2
        self.reduce = nn.ModuleList(ConvNormAct(width, reduced, kernel=1) for width in inputs)
        # With bias and without norm: one value per image is too few for statistics.
        self.context = nn.Conv2d(inputs[-1], reduced, 1)
        self.activation = nn.ReLU()
        self.fuse = ConvNormAct(reduced * (len(inputs) + 1), channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, F_i, h_i, w_i), finest first, to (B, channels, h_0, w_0)."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        context = self.activation(self.context(maps[-1].mean((2, 3), keepdim=True)))
        same_size = [upsample_to(x, reduced[0]) for x in (*reduced[1:], context)]
        return self.fuse(torch.cat([reduced[0], *same_size], dim=1))


class PublishedContextFusion(nn.Module):
    """1x1 of each map and of the coarsest map's global average, summed at stride 8, 3x3."""

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(
            ConvNormAct(width, channels, kernel=1, bias=True) for width in inputs
        )
        self.context = ConvNormAct(inputs[-1], channels, kernel=1, bias=True)
        self.fuse = ConvNormAct(channels, channels, bias=True)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, F_i, h_i, w_i), finest first, to (B, channels, h_0, w_0)."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        total = reduced[0] + self.context(maps[-1].mean((2, 3), keepdim=True))
        for x in reduced[1:]:
            total = total + upsample_to(x, total)
        return self.fuse(total)


class PAFPNNeck(nn.Module):
    """RetinaNet pyramid on context-fused maps, then stride-2 convolutions added bottom-up."""

    def __init__(self, inputs: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.widths = (channels,) * levels
        self.top_down = RetinaNetNeck(inputs, channels, levels, ContextFusion(inputs, channels))
        self.down = nn.ModuleList(
            ConvNormAct(channels, channels, stride=2) for _ in range(levels - 1)
        )
        self.outputs = nn.ModuleList(ConvNormAct(channels, channels) for _ in range(levels - 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one (B, channels, h, w) per level from maps (B, F_i, h_i, w_i), finest first."""
        pyramid = self.top_down(maps)
        levels = [pyramid[0]]
        for down, output, x in zip(self.down, self.outputs, pyramid[1:], strict=True):
            levels.append(output(down(levels[-1]) + x))
        return levels


class PublishedPAFPNNeck(nn.Module):
    """The same from summed maps; the bottom-up path is complete before the 3x3 of each level."""

    def __init__(self, inputs: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        self.widths = (channels,) * levels
        fusion = PublishedContextFusion(inputs, channels)
        self.top_down = RetinaNetNeck(inputs, channels, levels, fusion, published=True)
        self.down = nn.ModuleList(
            ConvNormAct(channels, channels, stride=2, bias=True) for _ in range(levels - 1)
        )
        self.outputs = nn.ModuleList(
            ConvNormAct(channels, channels, bias=True) for _ in range(levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one (B, channels, h, w) per level from maps (B, F_i, h_i, w_i), finest first."""
        pyramid = self.top_down(maps)
        levels = [pyramid[0]]
        for down, x in zip(self.down, pyramid[1:], strict=True):
            levels.append(down(levels[-1]) + x)
        return [output(x) for output, x in zip(self.outputs, levels, strict=True)]
